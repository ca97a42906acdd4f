"""Headers of safetensors files, good and bad."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from guidekit.nodes.host.files import safetensors_header as header
from guidekit.nodes.host.files.safetensors_header import Entry, read_header


def put(path, about, data=b"", length=None):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def test_reads_what_the_library_writes(tmp_path):
    tensors = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.zeros(()), "empty": torch.zeros(0, 4), "large": torch.zeros(5, 1, 3)}
    save_file(tensors, tmp_path / "a.safetensors", {"alpha": "8", "ss_network_dim": "4"})
    found = read_header(tmp_path / "a.safetensors")
    assert found.metadata == {"alpha": "8", "ss_network_dim": "4"}
    assert {name: e.shape for name, e in found.tensors.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert all(found.tensors[str(dtype)].dtype == name for dtype, name in DTYPES.items())


@pytest.mark.parametrize("length", range(1, 320))
def test_headers_of_every_length(tmp_path, length):
    """The first byte is the length's lowest: 128 is how a pickle begins, 80 and 75 are "PK"."""
    save_file({"x" * length: torch.zeros(2)}, tmp_path / "a.safetensors")
    assert [*read_header(tmp_path / "a.safetensors").tensors] == ["x" * length]


def test_without_tensors(tmp_path):
    assert read_header(put(tmp_path / "a", {})) == header.Header({}, {})
    assert read_header(put(tmp_path / "a", {"x": entry()}, b"12345678")).tensors == {"x": Entry("F32", (2,))}


BAD = {
    "nothing": b"",
    "a few bytes": b"\x01\x02",
    "a length beyond the file": (10**15).to_bytes(8, "little") + b"{}",
    "a length beyond what is read": (10**9).to_bytes(8, "little") + b"{}",
    "a cut header": (50).to_bytes(8, "little") + b'{"x": {"dty',
}


@pytest.mark.parametrize("what", BAD)
def test_files_that_are_cut_off(what, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(BAD[what])
    with pytest.raises(ValueError, match=r"a.safetensors is not a whole safetensors file: .*\. Get it again"):
        read_header(tmp_path / "a.safetensors")


WRONG = {
    "no JSON": (b"{x}", b""),
    "no text": (b"\xff\xfe\x00", b""),
    "a list": ([1], b""),
    "no description": ({"x": 3}, b""),
    "no dtype": ({"x": entry(dtype="F31")}, b"12345678"),
    "a list of dtypes": ({"x": entry(dtype=["F32"])}, b"12345678"),
    "a negative shape": ({"x": entry(shape=(-2, -1))}, b"12345678"),
    "a broken shape": ({"x": entry(shape=(2.0,))}, b"12345678"),
    "a true shape": ({"x": entry(shape=(True, 2))}, b"12345678"),
    "three offsets": ({"x": entry() | {"data_offsets": [0, 4, 8]}}, b"12345678"),
    "too little data for a shape": ({"x": entry(shape=(3,))}, b"12345678"),
    "wrong size of dtype": ({"x": entry(dtype="F16")}, b"12345678"),
    "a shape beyond all": ({"x": entry(shape=(2**62, 2**62))}, b"12345678"),
    "overlapping": ({"x": entry(), "y": entry(4, 12)}, b"123456789abc"),
    "a gap": ({"x": entry(), "y": entry(12, 20)}, b"12345678" * 3),
    "the same place": ({"x": entry(), "y": entry()}, b"12345678"),
    "data cut off": ({"x": entry()}, b"1234"),
    "more data": ({"x": entry()}, b"12345678" * 2),
    "a name twice": (b'{"x": 1, "x": 2}', b""),
    "a tensor twice": (f'{{"x": {json.dumps(entry())}, "x": {json.dumps(entry())}}}'.encode(), b"12345678"),
    "NaN": (b'{"x": NaN}', b""),
    "metadata that are numbers": ({"__metadata__": {"alpha": 8}}, b""),
    "metadata that are a list": ({"__metadata__": []}, b""),
    "very deep": (b"[" * 100_000, b""),
    "a very long number": (b'{"x": ' + b"9" * 10_000 + b"}", b""),
    "a very long name": ({"x" * 100_000: entry(8, 16)}, b"12345678" * 2),
}


@pytest.mark.parametrize("what", WRONG)
def test_headers_that_are_wrong(what, tmp_path):
    about, data = WRONG[what]
    with pytest.raises(
        ValueError, match=r"^a\.safetensors is not a whole safetensors file: .*\. Get it again"
    ) as error:
        read_header(put(tmp_path / "a.safetensors", about, data))
    assert len(str(error.value)) < 600


def test_a_duplicate_name_is_refused(tmp_path):
    """The library takes the last one."""
    about = f'{{"x": {json.dumps(entry(shape=(1, 2)))}, "x": {json.dumps(entry())}}}'.encode()
    path = put(tmp_path / "a.safetensors", about, b"12345678")
    with safe_open(path, "pt") as file:
        assert file.get_slice("x").get_shape() == [2]
    with pytest.raises(ValueError, match="in its header it names something twice"):
        read_header(path)


@pytest.mark.parametrize("name", ["data_offsets", 'a"data_offsets"', "__metadata_", "ä", "a.data_offsets"])
def test_names_that_look_like_keys_of_the_header(tmp_path, name):
    path = put(
        tmp_path / "a", {name: entry(), "__metadata__": {"data_offsets": "0", "x": '{"data_offsets": 0}'}}, bytes(8)
    )
    assert read_header(path) == header.Header(
        {name: Entry("F32", (2,))}, {"data_offsets": "0", "x": '{"data_offsets": 0}'}
    )


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"x": np.zeros(3)}))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("data.pkl", "x")
    for name in ("a.ckpt", "b.pt"):
        with pytest.raises(ValueError, match="is a pickle"):
            read_header(tmp_path / name)
    for name in ("folder.safetensors", "nothing.safetensors"):
        with pytest.raises(ValueError, match=rf"^{name} cannot be read: [^/]*\.$"):
            read_header(tmp_path / name)


def test_a_million_tensors(tmp_path):
    about = {f"x{i}": entry(0, 0, "F32", (0,)) for i in range(1_000_000)}
    with pytest.raises(ValueError, match=r"a names 1000000 tensors; up to 100000 are read\."):
        read_header(put(tmp_path / "a", about))


def test_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MOST", 10)
    assert len(read_header(put(tmp_path / "a", {f"x{i}": entry(0, 0, "F32", (0,)) for i in range(10)})).tensors) == 10
    with pytest.raises(ValueError, match="names 11 tensors; up to 10 are read"):
        read_header(put(tmp_path / "a", {f"x{i}": entry(0, 0, "F32", (0,)) for i in range(11)}))


def read_or_refused(path):
    """The header, or None with a sentence that begins with the file's name."""
    sentence = ""
    try:
        return read_header(path)
    except ValueError as error:
        sentence = str(error)
    assert sentence.startswith(f"{path.name} ")
    return None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes(content)
    read_or_refused(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "Q9"]) | _JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3) | _JSON,
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "y", "__metadata__"]), _ENTRIES | _JSON), st.binary(max_size=40))
def test_any_header(tmp_path_factory, about, data):
    """What is read has the shapes and dtypes that the weights come with."""
    path = put(tmp_path_factory.mktemp("any") / "a", about, data)
    if (found := read_or_refused(path)) is not None:
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == set(found.tensors)
            tensors = {name: file.get_tensor(name) for name in found.tensors}
        assert {name: (DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()} == {
            name: (e.dtype, e.shape) for name, e in found.tensors.items()
        }
