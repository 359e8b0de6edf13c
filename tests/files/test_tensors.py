import contextlib
import io
import json
import pickle
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.files.tensors import DTYPES, iter_pieces, read_tensors

F32_3 = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


def read(data):
    return read_tensors(io.BufferedReader(io.BytesIO(data)), len(data))


def written(tensors):
    return b"".join(iter_pieces(tensors))


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def some_tensors(generator):
    tensors = {str(dtype): torch.randint(0, 2, (2, 3), generator=generator).to(dtype) for dtype in DTYPES}
    tensors["weight"] = torch.randn(3, 5, generator=generator)
    tensors["weight.transposed"] = torch.randn(4, 6, generator=generator).t()
    tensors["strided"] = torch.randn(10, generator=generator)[::3]
    tensors["expanded"] = torch.randn(1, generator=generator).expand(4)
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2, generator=generator))
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.empty(0, 4)
    tensors["größe/日本"] = torch.tensor([float("nan"), -0.0, float("inf")])
    return tensors


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7)), name


def test_every_kind_of_tensor_comes_back_as_it_was(generator):
    tensors = some_tensors(generator)
    assert_same(tensors, read(written(tensors)))


def test_what_the_safetensors_library_writes_is_read_here(generator):
    tensors = {name: tensor.detach().contiguous() for name, tensor in some_tensors(generator).items()}
    assert_same(tensors, read(safetensors.torch.save(tensors, {"made": "elsewhere"})))


def test_the_bytes_are_those_that_the_safetensors_library_writes(generator):
    tensors = {name: tensor.detach().contiguous() for name, tensor in some_tensors(generator).items()}
    tensors['a"\\\n\t\x01'] = torch.zeros(1, 0, 2)
    for those in (tensors, {}, {"": torch.ones(1)}):
        assert written(those) == safetensors.torch.save(those, {"format": "pt"})
        assert_same(read(written(those)), safetensors.torch.load(written(those)))


def test_neither_writing_nor_reading_takes_a_second_copy(tmp_path):
    tensors = {"a": torch.zeros(1 << 20, dtype=torch.int64), "b": torch.ones(1 << 20, dtype=torch.float64)}
    tracemalloc.start()
    with open(tmp_path / "tensors", "wb") as file:
        file.writelines(iter_pieces(tensors))
    with open(tmp_path / "tensors", "rb") as file:
        again = read_tensors(file, (tmp_path / "tensors").stat().st_size)  # PyTorch's own memory is not traced
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert_same(again, tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_are_written_as_those_in_main_memory(generator):
    tensors = some_tensors(generator)
    assert written({name: tensor.cuda() for name, tensor in tensors.items()}) == written(tensors)


def test_equal_tensors_make_equal_files_in_whatever_order_they_come(generator):
    tensors = some_tensors(generator)
    assert written(tensors) == written(dict(reversed(tensors.items())))


def test_every_tensor_is_aligned_to_its_own_size(generator):
    data = written(some_tensors(generator))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert (
                entry["data_offsets"][0]
                % {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(entry["dtype"], 1)
                == 0
            ), name


def test_two_names_for_one_memory_are_refused():
    weight = torch.ones(3)
    with pytest.raises(AssertionError, match="head and embedding are one memory"):
        written({"embedding": weight, "head": weight.view(3, 1)})


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_what_the_format_cannot_hold_is_refused(tensor):
    with pytest.raises(AssertionError):
        written({"weight": tensor})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x00",
        b"\xff" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        raw(b"[]"),
        raw(b"{} trailing"),
        raw({"a": 1}),
        raw({"a": F32_3 | {"dtype": "PY"}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [-3]}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [3.0]}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [1 << 40, 1 << 40]}}, bytes(12)),
        raw({"a": F32_3 | {"data_offsets": [0, 8]}}, bytes(8)),
        raw({"a": F32_3 | {"data_offsets": [12, 0]}}, bytes(12)),
        raw({"a": F32_3}, bytes(11)),
        raw({"a": F32_3}, bytes(13)),
        raw({"a": F32_3, "b": F32_3}, bytes(12)),
        raw({"a": F32_3 | {"data_offsets": [4, 16]}}, bytes(16)),
        raw({"a": F32_3 | {"data_offsets": [False, 12]}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [True, 3]}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [1] * 70 + [3]}}, bytes(12)),
        raw({"a": F32_3 | {"shape": [1 << 70, 0], "data_offsets": [0, 0]}}),
        raw({"a": F32_3 | {"shape": [1 << 59, 2, 0], "data_offsets": [0, 0]}}),
        raw({"a": F32_3 | {"more": 1}}, bytes(12)),
        raw({"a": F32_3, "b": F32_3 | {"data_offsets": [8, 20]}}, bytes(20)),
        raw(b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "a": 1}', bytes(12)),
        raw(b""),
        pickle.dumps({"a": 1}),
        raw({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, bytes(4)),
        raw({"__metadata__": {"a": 1}}),
        raw({"__metadata__": []}),
        raw({"__metadata__": {"a": {"b": "c"}}}),
        raw({"__metadata__": {"a": "\udc00"}}),
        raw({"__metadata__": {"\udc00": "a"}}),
        raw({"\ud800": F32_3}, bytes(12)),
        raw(b'{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'),
        raw(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, -0]}}'),
        pytest.param(raw(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 0]}}'), id="digits"),
        raw(b'{"\xff": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
        pytest.param(raw(b"[" * 100_000), id="nested"),
    ],
)
def test_a_file_whose_header_is_not_true_is_refused(data):
    with pytest.raises(ValueError, match="it is not a safetensors file"):
        read(data)


def test_a_truth_value_that_is_neither_is_refused():
    with pytest.raises(ValueError, match="neither true nor false"):
        read(raw({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\x01\x02"))


def test_a_type_that_no_checkpoint_holds_is_refused():
    with pytest.raises(ValueError, match=r"of type torch\.uint32"):
        read(raw({"a": {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))


def test_a_file_that_is_shorter_than_its_manifest_says_is_refused():
    with pytest.raises(ValueError, match="it has 3 bytes instead of 9"):
        read_tensors(io.BufferedReader(io.BytesIO(b"abc")), 9)


@given(st.data())
def test_any_change_of_a_file_reads_as_tensors_or_is_a_value_error(data):
    original = written({"weight": torch.arange(6.0).reshape(2, 3), "mask": torch.tensor([True]), "empty": torch.empty(0)})
    begin = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(begin, len(original)))
    changed = original[:begin] + data.draw(st.binary(max_size=12)) + original[end:]
    try:
        tensors = read(changed)
    except ValueError:
        return
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= len(changed)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "I64", "U8", "BOOL", "F8", ""]),
                "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=3),
                "data_offsets": st.lists(st.integers(0, 40) | st.integers(), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_any_header_reads_as_tensors_or_is_a_value_error(header, data):
    with contextlib.suppress(ValueError):
        read(raw(header, data))


def test_a_header_that_is_too_long_is_refused_before_it_is_read():
    class Endless(io.BytesIO):
        def readinto(self, buffer):
            assert len(buffer) <= 1 << 20, "the header is being read"
            return super().readinto(buffer)

    head = (1 << 40).to_bytes(8, "little")
    tracemalloc.start()
    with pytest.raises(ValueError, match="its header has 1099511627776 bytes, more than"):
        read_tensors(io.BufferedReader(Endless(head + b"{}")), 1 << 41)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


NUMBERS = st.sampled_from(["0", "1", "2", "3", "4", "8", "12", "24"]) | st.sampled_from(
    [
        "-0",
        "-1",
        "1.0",
        "1e0",
        "01",
        "4294967296",
        "9223372036854775808",
        "18446744073709551616",
        "true",
        "null",
        '"1"',
        "[1]",
        "NaN",
    ]
)
STRINGS = st.sampled_from(
    [
        '"F8_E4M3"',
        '"F4"',
        '"C64"',
        '"U16"',
        '"I16"',
        '"a"',
        '"b"',
        '"c"',
        '""',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"\x01"',
        "1",
        "null",
        '"__metadata__"',
    ]
)


@st.composite
def headers(draw):
    """Most of them are nearly right: tensors one after the other, of which a few are described wrongly."""
    members, end = [], 0
    for key in draw(st.lists(st.sampled_from(['"a"', '"b"', '"c"', '"d"']), min_size=1, max_size=4, unique=True)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("I64", 8), ("U8", 1), ("F16", 2), ("F64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        begin, end = end, end + torch.Size(shape).numel() * size
        fields = {
            "dtype": f'"{dtype}"',
            "shape": f"[{','.join(map(str, shape))}]",
            "data_offsets": f"[{begin},{end}]",
        }
        if draw(st.integers(0, 7)) == 7:
            wrong = st.lists(NUMBERS, max_size=4).map(lambda numbers: f"[{','.join(numbers)}]") | STRINGS | st.just("{}")
            fields[draw(st.sampled_from([*fields, "more"]))] = draw(wrong)
        entry = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
        members.append(f"{draw(STRINGS) if draw(st.integers(0, 19)) == 19 else key}:{entry}")
    if draw(st.integers(0, 3)) == 3:
        content = st.lists(st.tuples(STRINGS, STRINGS), max_size=2).map(
            lambda pairs: "{" + ",".join(map(":".join, pairs)) + "}"
        )
        members.append('"__metadata__":' + draw(content | STRINGS | NUMBERS))
    text = ("{" + ",".join(draw(st.permutations(members))) + "}").encode()
    before, after = draw(
        st.sampled_from([(b"", b"")] * 6 + [(b" ", b""), (b"\n", b"\t "), (b"\xef\xbb\xbf", b""), (b"", b"\0"), (b"", b"\xff")])
    )
    return before + text + after, bytes(max(0, end + draw(st.sampled_from([0] * 8 + [-1, 1]))))


@settings(max_examples=6 * settings().max_examples)  # with fewer, it would not find what was once accepted
@given(headers(), st.sampled_from([0] * 8 + [-1, 1, 1 << 30, 1 << 63]))
def test_what_the_safetensors_library_refuses_is_refused_and_what_both_read_is_equal(header_and_data, more):
    header, data = header_and_data
    file = ((len(header) + more) % (1 << 64)).to_bytes(8, "little") + header + data
    try:
        tensors = read(file)
    except ValueError:
        return
    assert_same(tensors, safetensors.torch.load(file))
