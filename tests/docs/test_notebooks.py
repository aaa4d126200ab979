"""The notebooks in docs/ run from beginning to end."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in sorted(DOCS.glob("*.ipynb"))])
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
    monkeypatch.setenv("TF_FASHION_NOTEBOOK", str(tmp_path / "run"))
    notebook = nbformat.read(DOCS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "micro-F1" in printed and "matching by" in printed
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
