"""The drawn wardrobe in two domains: what UDMA's readers find in it, and that its photos show what they should."""

import collections
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tf_fashion.clustering.meta_domains import CategoryAlignment
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets import PhotoDomain, check_tree, open_street_to_shop
from tf_fashion.datasets.street_to_shop import DOMAINS, box_is_whole
from tf_fashion.datasets.wardrobe import draw_picture, draw_wardrobe
from tf_fashion.datasets.wardrobe_garments import KINDS, Identity
from tf_fashion.datasets.wardrobe_scenes import MAX_TILT, View, _garment_in, any_garment, second_studio, street_photo
from tf_fashion.datasets.wardrobe_street import PARTS, SOURCES, photos_per_product, street_photos

SIZE = 32
ARGUMENTS = {"seed": 3, "categories": ["dress", "top", "bottom", "shoes"]}


def drawn(root, **changes):
    arguments = {"items": 110, "size": SIZE, "seed": 3, "layout": "street_to_shop", "progress": False, "workers": 1}
    return draw_wardrobe(root, **(arguments | changes))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("wardrobe") / "w")


def digest(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_library_reads_it(tree):
    report = check_tree(tree)
    assert report.ok and not report.problems, report.format()
    assert report.kind == "street_to_shop"
    data = open_street_to_shop(tree)
    assert data.splits() == ["train", "test"] and all(data.domains(split) == list(DOMAINS) for split in data.splits())
    photos = {(domain.source, domain.side, split): data.photos(split, domain) for split in data.splits() for domain in DOMAINS}
    assert sum(map(len, photos.values())) == 110 == len(data.image_paths(photo for part in photos.values() for photo in part))
    manifest = json.loads((tree / "wardrobe.json").read_text())
    for (source, side, split), part in photos.items():
        products = len({photo.product for photo in part})
        assert manifest["counts"][f"{source}_{side}"][split] == {"images": len(part), "products": products}
    for source in SOURCES:
        consumers, shops = (data.photos("test", PhotoDomain(source, side)) for side in ("consumer", "shop"))
        assert {photo.identity for photo in consumers} == {photo.identity for photo in shops}
    assert all(2 <= len(product.consumers) <= 3 and len(product.shops) == 2 for product in data.train_products("df"))


def test_both_shops_have_the_same_categories_and_no_product_in_common(tree):
    data = open_street_to_shop(tree)
    shops = [PhotoDomain(source, "shop") for source in SOURCES]
    names = [data.category_names("train", shop) for shop in shops]
    assert names[0] == names[1] and set(names[0].values()) <= set(KINDS) and sorted(names[0]) == list(range(len(names[0])))
    aligned = CategoryAlignment.by_name(*names)
    assert [(group.source, group.target) for group in aligned.groups] == [((number,), (number,)) for number in names[1]]
    assert not aligned.target_only
    numbers = [data.numbers("train", shop) for shop in shops]
    single = CategoryAlignment.single(*(categories.tolist() for _, categories in numbers))
    assert single.groups[0].source == single.groups[0].target == tuple(names[0])
    products = numbers[0][0]
    assert np.array_equal(np.unique(products), np.arange(products.max() + 1))
    trained, tested = (data.photos(split, shops[1]) for split in ("train", "test"))
    assert not {photo.product for photo in trained} & {photo.product for photo in tested}
    assert {photo.category: photo.category_name for photo in tested}.items() <= names[1].items()


def test_boxes_lie_in_their_photos(tree):
    data = open_street_to_shop(tree)
    queries = data.photos("test", PhotoDomain("s2s", "consumer"))
    whole = 0
    for photo in queries:
        path = data.find(photo)
        with Image.open(path) as image:
            left, top, right, bottom = photo.box.corners
            assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
            assert min(right - left, bottom - top) >= 0.3 * SIZE
        whole += box_is_whole(path, photo.box)
    assert 0 < whole < len(queries)


def test_same_bytes_after_an_interruption(tree, tmp_path):
    expected = digest(tree)
    other = tmp_path / "w"
    shutil.copytree(tree, other)
    (other / "wardrobe.json").rename(other / "wardrobe.unfinished.json")
    for path in sorted((other / "images").iterdir())[::4]:
        path.unlink()
    (other / "test/shop_df.txt").unlink()
    assert digest(drawn(other)) == expected
    items = list(street_photos({**ARGUMENTS, "items": 110}))
    assert draw_picture(items[7], 3, SIZE).tobytes() != draw_picture(items[7], 4, SIZE).tobytes()


@pytest.mark.parametrize("items", [54, 333, 2700])
def test_products_are_told_apart_and_both_shops_follow_the_same_fashions(items):
    photos = list(street_photos({**ARGUMENTS, "items": items}))
    assert len(photos) == items == len({photo.id for photo in photos})
    looks = {(photo.source, photo.product): (tuple(photo.attributes.values()), photo.split) for photo in photos}
    designs = {source: [look for (owner, _), (look, _) in looks.items() if owner == source] for source in SOURCES}
    assert all(len(of_one) == len(set(of_one)) for of_one in designs.values())
    alike = sum(look in set(designs["df"]) for look in designs["s2s"]) / len(designs["s2s"])
    assert 0.2 < alike < 0.9
    kinds = collections.Counter((owner, split, look[0]) for (owner, _), (look, split) in looks.items())
    sold = {kind for _, _, kind in kinds}
    assert all(kinds[*part, kind] >= 2 for part in PARTS if part != ("df", "test") for kind in sold)
    assert len(sold) == len(KINDS) or items < 600
    assert len({photo.identity for photo in photos}) == len(looks)


def test_some_categories_only():
    photos = list(street_photos({"items": 300, "seed": 0, "categories": ["shoes"]}))
    assert {photo.category for photo in photos} == {"shoes"}
    assert {photo.attributes["kind"] for photo in photos} == {"sneakers", "boots", "pumps"}


@pytest.mark.parametrize("wide", [False, True])
def test_most_of_a_garment_is_in_its_box(wide):
    shown, tilts = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        view = View.draw(rng, 48, wide)
        alpha = np.asarray(_garment_in(view, any_garment(rng), Identity.draw(rng), rng).getchannel("A"), float)
        assert alpha.shape == (view.height, view.width)
        left, top, right, bottom = view.box
        shown.append(alpha[top:bottom, left:right].sum() / alpha.sum())
        tilts.append(abs(view.pose.tilt))
        assert alpha.sum() / 255 > 0.03 * 48 * 48
    assert min(shown) > 0.75 and max(tilts) <= MAX_TILT and np.mean(tilts) > 5


def test_studio_and_street_differ():
    attributes = {"kind": "dress", "colour": "red", "pattern": "dotted", "second": "white", "sleeve": "short", "length": "knee"}
    attributes |= {"neckline": "round", "shape": "a-line", "belt": "no"}
    pictures = collections.defaultdict(list)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pictures["studio"].append(np.asarray(second_studio(attributes, Identity(), rng, 48, close=seed % 2 == 1), float))
        for source in SOURCES:
            view = View.draw(rng, 48)
            pictures[source].append(np.asarray(street_photo(attributes, Identity(), view, source, rng), float))
    middles = {name: np.stack(some)[:, 12:36, 18:30] for name, some in pictures.items()}
    assert all(middle[..., 0].mean() > middle[..., 2].mean() + 20 for middle in middles.values()), "the dress is red everywhere"
    assert np.stack(pictures["s2s"]).mean() < np.stack(pictures["df"]).mean() - 10


def test_bad_arguments(tmp_path):
    with pytest.raises(UsageError, match="too few"):
        drawn(tmp_path / "w", items=40)
    with pytest.raises(UsageError, match="always has train and test"):
        drawn(tmp_path / "w", splits=["train"])
    assert not (tmp_path / "w").exists()
    assert sum(sum(map(sum, products)) for products in photos_per_product(777).values()) == 777
