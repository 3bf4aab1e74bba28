import numpy as np
import pytest
import torch

from fedexp.datasets import (
    flower_partitioner,
    from_table,
    label_counts,
    load,
    partition,
    parts_by,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
LABELS = np.arange(40) % 4
WRITERS = np.array(list("dcba")).repeat(10)


def test_without_flwr_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fedexp.extras.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedexp\[hub\]'"):
        load("hub:owner/name")


@pytest.fixture
def hf(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    pytest.importorskip("flwr_datasets")
    return pytest.importorskip("datasets")


@pytest.fixture
def table(hf):
    pil = pytest.importorskip("PIL.Image")
    features = {
        "image": hf.Image(),
        "label": hf.ClassLabel(num_classes=4),
        "writer": hf.Value("string"),
    }
    columns = {"image": [pil.fromarray(i) for i in IMAGES], "label": LABELS, "writer": WRITERS}
    return hf.Dataset.from_dict(columns, features=hf.Features(features))


@pytest.fixture
def hub(hf, table, monkeypatch):
    """A Hub with one dataset in memory."""
    splits = hf.DatasetDict({"train": table, "test": table.select(range(8))})
    loader = {"owner/letters": splits, "owner/alone": hf.DatasetDict({"train": table})}
    monkeypatch.setattr(
        "flwr_datasets.federated_dataset.datasets.load_dataset", lambda path, **_: loader[path]
    )


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_is_loaded_with_its_classes_and_clients():
    data = load("hub:owner/letters:label:writer")
    assert data.names == ("a", "b", "c", "d")
    assert data.num_classes == 4
    assert torch.equal(data.train[1], torch.from_numpy(LABELS))
    assert np.allclose(data.train[0][:, 0] * 255, IMAGES)
    assert len(data.test[0]) == 8
    assert len(partition.partition_named("natural", data, num_clients=0, seed=0)) == 4


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_without_a_test_split_holds_out_a_fifth():
    data = load("hub:owner/alone:label:writer")
    assert [len(data.train[0]), len(data.test[0]), len(data.keys)] == [32, 8, 32]


def test_several_numeric_columns_become_one_input(hf):
    columns = {"age": [1.0, 2.0], "height": [3, 4], "sick": ["no", "yes"]}
    data = from_table(*[hf.Dataset.from_dict(columns)] * 2, target="sick")
    assert data.train[0].tolist() == [[1, 3], [2, 4]]
    assert data.train[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"0 columns hold classes. Name one of: age, height, sick"):
        from_table(hf.Dataset.from_dict(columns))
    with pytest.raises(ValueError, match=r"column='ill'\): there is none. Columns: age"):
        from_table(hf.Dataset.from_dict(columns), target="ill")


def test_a_column_that_cannot_be_used_is_named(hf):
    columns = {"age": [1.0, None, 3.0, 4.0, 5.0], "sick": [0, 1, 0, 1, 1]}
    table = hf.Dataset.from_dict(columns | {"sex": list("mffmf")})
    with pytest.raises(ValueError, match="column 'sex' holds 'm', it must be numbers"):
        from_table(table, table, target="sick")
    table = table.remove_columns("sex")
    with pytest.raises(ValueError, match=r"column 'age' holds NaN in 1 of 5 rows.*--impute"):
        from_table(table, table, target="sick")
    filled = from_table(table, table, target="sick", impute="median")
    assert filled.train[0].tolist() == [[1], [3.5], [3], [4], [5]]
    scaled = from_table(table, table, target="sick", impute="zero", standardize=True)
    expected = (np.array([1, 0, 3, 4, 5]) - 2.6) / np.std([1, 0, 3, 4, 5])
    assert np.allclose(scaled.train[0][:, 0], expected, atol=1e-6)
    lists = table.add_column("words", [[1, 2]] * 5)
    with pytest.raises(ValueError, match=r"column='words'.*arrays of shape"):
        from_table(lists, lists, target="sick")
    ragged = hf.Dataset.from_dict({"words": [[1, 2], [3]], "sick": [0, 1]})
    with pytest.raises(ValueError, match=r"column='words'.*one shape"):
        from_table(ragged, ragged, target="sick")
    with pytest.raises(ValueError, match="no column beside target and key"):
        from_table(table.remove_columns("age"), target="sick")


def test_a_column_of_token_lists_stays_tokens(hf):
    table = hf.Dataset.from_dict({"words": [[1, 2], [3, 0]], "kind": ["x", "y"]})
    data = from_table(table, table, target="kind")
    assert data.train[0].dtype == torch.int64
    assert data.train[0].tolist() == [[1, 2], [3, 0]]
    assert data.class_names == ("x", "y")


def test_a_test_set_whose_classes_are_not_published_is_refused(hf):
    features = hf.Features({"x": hf.Value("float32"), "label": hf.ClassLabel(num_classes=2)})
    train = hf.Dataset.from_dict({"x": [1.0, 2.0], "label": [0, 1]}, features=features)
    test = hf.Dataset.from_dict({"x": [1.0, 2.0], "label": [-1, -1]}, features=features)
    with pytest.raises(ValueError, match=r"column='label'\): 2 rows have no class \(-1\)"):
        from_table(train, test)


def all_partitioners():
    import flwr_datasets.partitioner as theirs

    return {
        "iid": theirs.IidPartitioner(10),
        "size": theirs.LinearPartitioner(10),
        "shards": theirs.ShardPartitioner(10, "label", num_shards_per_partition=2),
        "pathological": theirs.PathologicalPartitioner(
            10, "label", num_classes_per_partition=2, class_assignment_mode="first-deterministic"
        ),
        "dirichlet": theirs.DirichletPartitioner(10, "label", alpha=5.0, min_partition_size=1),
        "natural": theirs.NaturalIdPartitioner("key"),
    }


@pytest.mark.parametrize("kind", ["iid", "size", "shards", "pathological", "dirichlet", "natural"])
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets, pyarrow
@pytest.mark.usefixtures("hf")
def test_their_partitioners_split_our_data(kind):
    data = load("synthetic-lr")
    parts = parts_by(all_partitioners()[kind], data)
    assert len(parts) == (30 if kind == "natural" else 10)
    num_left_out = len(data.train[1]) % 20 if kind == "shards" else 0
    assert len(np.unique(parts.indices)) == len(parts.indices)
    assert len(parts.indices) == len(data.train[1]) - num_left_out
    if kind == "natural":
        assert sorted(parts.sizes) == sorted(np.bincount(data.keys))
    if kind == "pathological":
        counts = label_counts(data.train[1].numpy(), parts)
        assert (np.count_nonzero(counts, axis=1) == 2).all()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["dirichlet", "natural"])
def test_our_partitioners_split_a_federated_dataset(name):
    from flwr_datasets import FederatedDataset

    column, settings = ("label", {"alpha": 0.5}) if name == "dirichlet" else ("writer", {})
    ours = flower_partitioner(name, partition_by=column, num_clients=4, seed=1, **settings)
    federated = FederatedDataset(
        dataset="owner/letters", partitioners={"train": ours}, shuffle=False
    )
    rows = LABELS if name == "dirichlet" else WRITERS
    parts = partition.PARTITIONERS[name](rows, num_clients=4, seed=1, **settings)
    for i in range(4):
        assert federated.load_partition(i)["label"][:] == LABELS[parts[i]].tolist()
    assert federated.partitioners["train"].num_partitions == 4
