"""Consumer-to-shop data: every list and feature file, boxes, and how broken ones are refused."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.shared import shared
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import DATASETS, PhotoDomain, check_tree, find_dataset, open_street_to_shop
from tf_fashion.datasets.domain_features import read_domain_features, read_labels, write_domain_features
from tf_fashion.datasets.mat_files import read_mat
from tf_fashion.datasets.street_lists import (
    Box,
    read_eval_partition,
    read_id_list,
    read_pair_json,
    read_photo_json,
    read_train_list,
)
from tf_fashion.datasets.street_to_shop import box_is_whole, crop_picture
from tf_fashion.inputs.crops import photo_paths

DF_CONSUMER, DF_SHOP, S2S_CONSUMER, S2S_SHOP = (PhotoDomain(a, b) for a in ("df", "s2s") for b in ("consumer", "shop"))


def picture(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def tree(tmp_path):
    """One product on each side, with pictures where the original programs have them."""
    root, photos = tmp_path / "lists", tmp_path / "photos"
    (root / "train_cluster").mkdir(parents=True)
    (root / "test").mkdir()
    (root / "df_train").mkdir()
    folder = "TOPS/T_Shirt/id_00000007"
    (root / "train_cluster/df_shop.txt").write_text(
        f"{folder}/shop_01.jpg 0 19 TOPS/T_Shirt\n\n{folder}/shop_02.jpg 0 19 TOPS/T_Shirt\n"
    )
    (root / "train_cluster/df_consumer.txt").write_text(f"{folder}/comsumer_01.jpg 0 19\r\n")
    (root / "train_cluster/s2s_shop.txt").write_text("tops/rtr/tops_0000001_rtr_000000005.jpg 1 10 tops\n")
    (root / "test/consumer_df.txt").write_text(f"{folder}/comsumer_01.jpg,id_00000007\n")
    (root / "test/shop_df.txt").write_text(f"{folder}/shop_01.jpg,id_00000007\n{folder}/shop_02.jpg,007\n")
    box = {"left": 10.9, "top": 5.2, "width": 40, "height": 10.9}
    query = {"path": "Src/002/000002423.png", "photo": 2423, "bbox": box, "category": "tops", "product": 12, "label": 10}
    (root / "test/test_consumer_single_naila_dataset_street2shop.json").write_text(json.dumps([query, {**query, "product": 99}]))
    gallery = {"path": "Src/001/000000031.jpg", "product": 12, "label": 10, "category": "tops"}
    (root / "test/test_shop_single_naila_dataset_street2shop.json").write_text(json.dumps([gallery]))
    pairs = f"2\nimage_pair_name_1 image_pair_name_2 item_id evaluation_status\nimg/{folder}/comsumer_01.jpg img/{folder}/shop_01.jpg"
    (root / "df_train/V_list_eval_partition.txt").write_text(
        f"{pairs} id_00000007 train\n{pairs.split()[-2]} {pairs.split()[-1]} id_00000007 test\n"
    )
    for name in ("comsumer_01", "shop_01", "shop_02"):
        picture(photos / "cropped_img" / folder / f"{name}.jpg")
    picture(photos / folder / "shop_01.jpg", (8, 8))
    picture(photos / "tops/rtr/tops_0000001_rtr_000000005.jpg")
    picture(photos / "tops/rtr/tops_0000012_rtr_000000031.jpg")
    picture(photos / "Src/002/000002423.png")
    return root, photos


def test_every_list_of_a_tree(tree, tmp_path):
    root, images = tree
    data = open_street_to_shop(root, images)
    assert data.splits() == ["train", "test"] and len(data.annotation_files()) == 8
    assert data.domains("train") == [DF_CONSUMER, DF_SHOP, S2S_SHOP] and len(data.domains("test")) == 4
    shop = data.photos("train", DF_SHOP)
    assert [(p.product, p.category, p.category_name, p.row) for p in shop] == [
        ("0", 19, "TOPS/T_Shirt", 0),
        ("0", 19, "TOPS/T_Shirt", 1),
    ]
    assert data.photos("train", DF_SHOP) is shop and data.category_names("train", DF_CONSUMER) == {19: "19"}
    assert [values.tolist() for values in data.numbers("train", DF_SHOP)] == [[0, 0], [19, 19]]
    assert [p.identity for p in data.photos("test", DF_SHOP)] == ["id_00000007", "007"], "ids stay text"
    assert data.find(shop[0]) == images / "cropped_img" / shop[0].path, "the part that shows the product comes first"
    query, gallery = data.photos("test", S2S_CONSUMER)[0], data.photos("test", S2S_SHOP)[0]
    assert (
        query.box == Box(10.9, 5.2, 40.0, 10.9)
        and query.box.corners == (10, 5, 50, 16)
        and query.identity == gallery.identity == "10/12"
    )
    assert data.find(gallery) == images / "tops/rtr/tops_0000012_rtr_000000031.jpg"
    with pytest.raises(DataError, match="s2s_consumer.txt: no such file; it lists the train photos of s2s_consumer"):
        data.photos("train", S2S_CONSUMER)
    with pytest.raises(DataError, match="id_00000007/comsumer_01.jpg has no product number and category"):
        data.numbers("test", DF_CONSUMER)
    with pytest.raises(UsageError, match="no split 'val'"):
        data.photos("val", DF_SHOP)
    with pytest.raises(UsageError, match="df or s2s"):
        PhotoDomain("DF", "shop")
    paths, bad = photo_paths(data, data.photos("test", S2S_CONSUMER), tmp_path / "cache", progress=False)
    assert not bad and len(paths) == 1, "two queries are the same part of one photo"
    pixels = np.asarray(Image.open(paths[query.image_id]))
    whole = np.asarray(Image.open(images / query.path))
    assert pixels.shape == (11, 40, 3) and (pixels[:, :30] == whole[5:16, 10:]).all() and not pixels[:, 30:].any()
    assert data.data_hash() == open_street_to_shop(root).data_hash()


def test_products_to_train_on(tree):
    root, images = tree
    data = open_street_to_shop(root, images)
    (product,) = data.train_products()
    assert product.name == "TOPS/T_Shirt/id_00000007" and [len(product.consumers), len(product.shops)] == [1, 2]
    (listed,) = data.train_products(listed=True)
    assert [photo.path.split("/")[-1] for photo in listed.shops] == ["shop_01.jpg"], "the test pair does not count"
    (root / "df_train/V_list_eval_partition.txt").unlink()
    (grouped,) = data.train_products()
    assert (grouped.name, len(grouped.consumers), len(grouped.shops)) == ("19/0", 1, 2)
    entry = {
        "path": "Src/1.jpg",
        "bbox": {"left": 0, "top": 0, "width": 3, "height": 3},
        "product": 5,
        "label": 2,
        "category": "x",
        "photo": 1,
    }
    df = {"path": ["A/B/id/shop_1.jpg", "A/B/id/shop_2.jpg"], "product": "A/B/id"}
    content = {"1": {"Consumer": [[df]], "Shop": [[df]]}, "0": {"Consumer": [[entry], [entry]], "Shop": [[{**entry, "bbox": None}]]}}
    path = root / "df_train/train_dataset_street2shop.json"
    path.write_text(json.dumps(content))
    first, second = read_pair_json(path)
    assert (first.name, len(first.consumers), first.shops[0].box) == ("2/5", 2, None)
    assert (second.name, [photo.path for photo in second.shops]) == ("A/B/id", df["path"])
    assert [product.name for product in data.train_products("s2s")] == ["2/5"]


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_id_list, "a.jpg,id_1\nb.jpg id_2\n", "line 2: expected `path,id`, found 1 columns"),
        (read_id_list, "a.jpg,id_1,3\n", "line 1: expected `path,id`, found 3 columns"),
        (read_id_list, "a.jpg,\n", "line 1: expected `path,id`, found an empty column"),
        (read_id_list, "\n", "the list is empty"),
        (read_id_list, "../secret.jpg,id_1\n", "leads outside"),
        (read_train_list, "a.jpg 0 1 tops\n/etc/passwd 0 1 tops\n", "line 2: the path '/etc/passwd' leads outside"),
        (read_train_list, "a.jpg 0 one tops\n", "line 1: expected whole numbers from 0 as product and category, found 'one'"),
        (read_train_list, "a.jpg -1 1 tops\n", "found '-1'"),
        (read_train_list, "a.jpg 0\n", "found 2 columns"),
        (read_train_list, "a.jpg 0 1 tops\nb.jpg 0 2 hats\n", "line 2: product 0 has category 2 here and 1 in .*line 1"),
        (
            read_eval_partition,
            "a/b/id_1/c.jpg a/b/id_1/s.jpg id_2 train\n",
            "the third step of 'a/b/id_1/c.jpg' is not the item's id 'id_2'",
        ),
        (read_eval_partition, "a/b/id_1/c.jpg a/b/id_1/s.jpg id_1 training\n", "expected train, val or test, found 'training'"),
        (read_eval_partition, "a/b/id_1/c.jpg id_1 train\n", "found 3 columns"),
        (read_photo_json, "{}", "expected a JSON list of photos"),
        (read_photo_json, "[{]", "not valid JSON"),
        (read_photo_json, '[{"path": "a.jpg", "label": 1}]', "entry 0: .* found no product"),
        (read_photo_json, '[{"path": "a.jpg", "product": true, "label": 1}]', "expected a product number, found True"),
        (read_photo_json, '[{"path": "a.jpg", "product": 1, "label": "1"}]', "as label, found '1'"),
        (
            read_photo_json,
            '[{"path": "a.jpg", "product": 1, "label": 1, "bbox": {"left": 1, "top": 1, "width": 0, "height": 4}}]',
            "has no pixel",
        ),
        (
            read_photo_json,
            '[{"path": "a.jpg", "product": 1, "label": 1, "bbox": {"left": 1, "top": 1, "width": NaN, "height": 4}}]',
            "box of numbers",
        ),
        (
            read_photo_json,
            '[{"path": "a.jpg", "product": 1, "label": 1, "bbox": {"left": 0, "top": 0, "width": 1e9, "height": 1e9}}]',
            "more than",
        ),
        (read_pair_json, '{"a": 1}', 'the keys "0", "1"'),
        (read_pair_json, '{"0": {"Shop": []}}', "expected lists of photos under 'Consumer' and 'Shop'"),
    ],
)
def test_broken_lists(tmp_path, reader, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        reader(path)
    problems = []
    reader(path, problems.append)
    assert problems and problems[0].kind


def test_queries_need_boxes_and_files_must_exist(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"path": "a.jpg", "product": 1, "label": 1}]')
    assert read_photo_json(path)[0].product == "1"
    with pytest.raises(DataError, match="expected a box"):
        read_photo_json(path, boxes=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_id_list(tmp_path / "no.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9.jpg,id\n")
    with pytest.raises(DataError, match="expected UTF-8, found other bytes at offset 3"):
        read_id_list(tmp_path / "latin.txt")
    with pytest.raises(DataError, match="no dataset|expected train_cluster"):
        open_street_to_shop(tmp_path)


def test_check_lists_everything(tree):
    root, images = tree
    assert check_tree(root, images, progress=False).ok
    assert "street_to_shop" in DATASETS and find_dataset(root).name == "street_to_shop"
    (images / "tops/rtr/tops_0000012_rtr_000000031.jpg").unlink()
    (root / "test/consumer_df.txt").write_text("x/comsumer_01.jpg,id_00000009\nbroken\n")
    query = {"path": "Src/002/000002423.png", "product": 12, "label": 10, "bbox": {"left": 90, "top": 0, "width": 5, "height": 5}}
    (root / "test/test_consumer_single_naila_dataset_street2shop.json").write_text(json.dumps([query]))
    report = check_tree(root, images, progress=False)
    text = report.format(None)
    assert "1 queries have no picture of their product in the gallery, for instance those of product 'id_00000009'" in text
    assert "missing picture 'Src/001/000000031.jpg' (entry 0)" in text and "missing picture 'x/comsumer_01.jpg'" in text
    assert "line 2: expected `path,id`" in text and "lies outside of the picture, 40 x 30 pixels" in text
    assert len(report.errors) == 4


def test_parts_of_pictures(tmp_path):
    pixels = picture(tmp_path / "a.png")
    part = crop_picture(tmp_path / "a.png", Box(-3.0, -2.0, 10.0, 40.0))
    assert part.shape == (40, 10, 3) and (part[2:32, 3:] == pixels[:, :7]).all()
    assert not part[:2].any() and not part[32:].any() and not part[:, :3].any()
    assert box_is_whole(tmp_path / "a.png", Box(0, 0, 40, 30)) and not box_is_whole(tmp_path / "a.png", Box(0, 0, 39, 30))
    with pytest.raises(DataError, match="lies outside of the picture, 40 x 30"):
        crop_picture(tmp_path / "a.png", Box(40, 0, 3, 3))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match="unreadable picture"):
        crop_picture(tmp_path / "b.png", Box(0, 0, 3, 3))
    with pytest.raises(DataError, match="no such file"):
        crop_picture(tmp_path / "c.png", Box(0, 0, 3, 3))


def test_feature_files(tmp_path, tree):
    values = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    path = write_domain_features(tmp_path / "train_Shop_X_60.h5", values, [0, 0], [19, 19])
    features = read_domain_features(path)
    assert (features.values == values).all() and features.products == ("0", "0") and features.categories.tolist() == [19, 19]
    shop = open_street_to_shop(*tree).photos("train", DF_SHOP)
    features.require_list(shop, "df_shop.txt")
    with pytest.raises(DataError, match="expected 1 rows as in df_shop.txt, found 2"):
        features.require_list(shop[:1], "df_shop.txt")
    other = read_domain_features(write_domain_features(path, values, [0, 4], [19, 19], test=True))
    with h5py.File(path) as file:
        assert file["labels"].shape == (2, 1) and set(file) == {"X_", "labels", "class_labels"}
    with pytest.raises(DataError, match="row 1: expected product 0 as in df_shop.txt, found 4"):
        other.require_list(shop, "df_shop.txt")
    with h5py.File(path, "w") as file:
        file["X_"], file["labels"] = values, np.array([[7.0], [16777215.0]], np.float32)
    assert read_domain_features(path).products == ("7", "16777215"), "ids may have passed through float32"
    (tmp_path / "labels.txt").write_text("id_1\nid_2\n\n")
    assert read_domain_features(path, tmp_path / "labels.txt").products == ("id_1", "id_2")
    with pytest.raises(DataError, match="not written, the features hold NaN"):
        write_domain_features(path, values * np.nan)


def test_broken_feature_files(tmp_path):
    path = tmp_path / "a.h5"
    values = np.ones((3, 4), np.float32)

    def stored(**arrays):
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
        return path

    for arrays, message in (
        ({"Y": values}, "expected the data set 'X_', found Y"),
        ({"X_": values[0]}, "expected features"),
        ({"X_": np.where(np.eye(3, 4) > 0, np.nan, values)}, r"NaN or infinity in 3 row\(s\) \(0, 1, 2\)"),
        ({"X_": values, "pid": [1, 2]}, "expected 3 products, one per row of the features, found 2"),
        ({"X_": values, "labels": [[1.0], [2.5], [3.0]]}, "labels, row 1: expected a whole number from 0, found .*2.5"),
        ({"X_": values, "cid": [1, -2, 3]}, "cid, row 1"),
    ):
        with pytest.raises(DataError, match=message):
            read_domain_features(stored(**arrays))
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        read_domain_features(path)
    with pytest.raises(DataError, match="no such file"):
        read_domain_features(tmp_path / "b.h5")
    with pytest.raises(UsageError, match="not from '.npy'"):
        (tmp_path / "c.npy").touch()
        read_domain_features(tmp_path / "c.npy")
    (tmp_path / "labels.txt").write_text("id_1\n\nid_2\n")
    with pytest.raises(DataError, match="line 2: expected one product id a line"):
        read_labels(tmp_path / "labels.txt")


def test_matlab_files_as_scipy_writes_them(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    path = tmp_path / "Query_X_60.mat"
    single = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    for compressed in (False, True):
        matrices = {
            "a": "text",
            "z": single + 1j,
            "counts": np.arange(6.0).reshape(2, 3),
            "feats": single,
            "t": np.array([[3]], np.uint8),
        }
        scipy_io.savemat(path, matrices, do_compression=compressed)
        for name in ("feats", "counts", "t"):
            found = read_mat(path, name)
            assert found.dtype == matrices[name].dtype and (found == matrices[name]).all()
        assert (read_domain_features(path).values == single).all()
        with pytest.raises(DataError, match="expected the matrix 'a' of numbers, found 'a', 'z', 'counts', 'feats', 't'"):
            read_mat(path, "a")
        content = path.read_bytes()
        for cut in (60, 130, len(content) // 2, len(content) - 9):
            (tmp_path / "cut.mat").write_bytes(content[:cut])
            with pytest.raises(DataError, match="another file|cut short"):
                read_mat(tmp_path / "cut.mat", "no such matrix")
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["feats"] = single.T
    assert (read_domain_features(tmp_path / "new.mat").values == single).all()


def test_real_photos_in_this_layout():
    root = shared("data/products")
    data = open_street_to_shop(root)
    counts = {(split, str(domain)): len(data.photos(split, domain)) for split in data.splits() for domain in data.domains(split)}
    assert counts["train", "df_shop"] == 1873 and counts["test", "df_consumer"] == 300 and len(counts) == 8
    queries = data.photos("test", S2S_CONSUMER)
    assert not data.missing_images(queries[:40] + data.photos("train", S2S_SHOP)[:40])
    paths, bad = photo_paths(data, queries[:10], progress=False)
    assert not bad and paths[queries[0].image_id] == data.find(queries[0]), "a box of the whole photo takes its file"
    assert len(data.train_products()) == 11
