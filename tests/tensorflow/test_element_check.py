"""An element at which TensorFlow would crash is refused before TensorFlow sees it."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import dataset_pb2, tensor_pb2, types_pb2

from input_checkpoint import CorruptCheckpointError
from input_checkpoint.state import Element, ElementBatch, StoredState
from input_checkpoint.tensorflow.element_check import ElementChecker
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.variants import split_payload

v1 = tf.compat.v1
INT64, STRING, VARIANT = types_pb2.DT_INT64, types_pb2.DT_STRING, types_pb2.DT_VARIANT


def tensor(dtype: int, *dims: int, **values) -> tensor_pb2.TensorProto:
    made = tensor_pb2.TensorProto(dtype=dtype, **values)
    made.tensor_shape.SetInParent()
    for size in dims:
        made.tensor_shape.dim.add().size = size
    return made


def component(dtype: int, *dims: int, sizes: list[int]) -> dataset_pb2.CompressedComponentMetadata:
    made = dataset_pb2.CompressedComponentMetadata(dtype=dtype, uncompressed_bytes=sizes)
    made.tensor_shape.SetInParent()
    for size in dims:
        made.tensor_shape.dim.add().size = size
    return made


def compressed(*components: dataset_pb2.CompressedComponentMetadata, data: bytes = b"d" * 40):
    element = dataset_pb2.CompressedElement(data=data, component_metadata=components)
    inner = tensor_pb2.VariantTensorDataProto(
        type_name="tensorflow.data.CompressedElement", metadata=element.SerializeToString()
    )
    return tensor(VARIANT, variant_val=[inner])


def nested(depth: int) -> tensor_pb2.TensorProto:
    inner = tensor(INT64, int64_val=[1])
    for _ in range(depth):
        inner = tensor(
            VARIANT, variant_val=[tensor_pb2.VariantTensorDataProto(type_name="x", tensors=[inner])]
        )
    return inner


def element_of(*tensors: tensor_pb2.TensorProto) -> Element:
    variant = tensor_pb2.VariantTensorDataProto(
        type_name="tensorflow::Iterator", metadata=b"Iterator::Root@@next", tensors=tensors
    )
    return split_payload(variant.SerializeToString())


def no_rank() -> tensor_pb2.TensorProto:
    made = tensor(INT64, int64_val=[1])
    made.tensor_shape.unknown_rank = True
    return made


HOSTILE = {
    "a huge shape without values": tensor(INT64, 1 << 40),
    "a huge shape with one value": tensor(INT64, 1 << 36, int64_val=[1]),
    "a huge shape of texts": tensor(STRING, 1 << 34, string_val=[b"a"]),
    "a huge shape of variants": tensor(VARIANT, 1 << 30),
    "a dimension of a negative size": tensor(INT64, -5, int64_val=[1]),
    "a shape beyond 64 bits": tensor(INT64, 1 << 40, 1 << 40, int64_val=[1]),
    "content that does not fit the shape": tensor(INT64, 1 << 30, tensor_content=b"abc"),
    "content of texts": tensor(STRING, 3, tensor_content=b"abc"),
    "an unknown type": tensor(99, 1),
    "a reference": tensor(types_pb2.DT_INT64_REF, 3, int64_val=[1]),
    "too many dimensions": tensor(INT64, *[1] * 300, int64_val=[1]),
    "no rank": no_rank(),
    "many nested variants": nested(40),
    "a compressed tensor of a huge shape": compressed(component(INT64, 1 << 40, sizes=[8])),
    "a compressed tensor larger than its shape": compressed(component(INT64, sizes=[800])),
    "a compressed tensor without a size": compressed(component(INT64, sizes=[])),
    "more compressed texts than the shape has": compressed(component(STRING, 2, sizes=[1, 1, 1])),
    "compressed texts of terabytes": compressed(component(STRING, sizes=[1 << 42])),
    "little compressed data for much": compressed(component(INT64, 1 << 20, sizes=[8 << 20]), data=b"d"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_element_at_which_tensorflow_would_crash_is_refused(what):
    with pytest.raises(CorruptCheckpointError):
        ElementChecker().check([element_of(HOSTILE[what])])


@pytest.mark.parametrize(
    "what", ["a compressed tensor larger than its shape", "little compressed data for much"]
)
def test_a_hostile_element_after_a_good_one_is_refused(what):
    good = element_of(compressed(component(INT64, sizes=[8])))
    checker = ElementChecker()
    checker.check([good, good])
    with pytest.raises(CorruptCheckpointError):
        checker.check([good, element_of(HOSTILE[what])])


@pytest.mark.parametrize(
    "good",
    [
        tensor(INT64, int64_val=[5]),
        tensor(INT64, 3, int64_val=[1, 2, 3]),
        tensor(INT64, 0),
        tensor(INT64, 2, tensor_content=bytes(16)),
        tensor(STRING, 2, string_val=[b"", b'"text"']),
        nested(3),
        compressed(component(INT64, 2, sizes=[16]), component(STRING, 2, sizes=[0, 5])),
    ],
)
def test_what_tensorflow_can_have_written_is_accepted(good):
    ElementChecker().check([element_of(good)])
    ElementChecker().check([element_of(good, good)])


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
def test_a_compressed_element_of_any_size_is_accepted(size):
    data = random.Random(size).randbytes(size + 1)
    ElementChecker().check(
        [element_of(compressed(component(types_pb2.DT_UINT8, size, sizes=[size]), data=data))]
    )


def test_a_tensor_hidden_in_the_key_is_refused():
    key, payload = element_of(HOSTILE["a huge shape without values"])
    good_key, good_payload = element_of(tensor(INT64, int64_val=[5]))
    with pytest.raises(CorruptCheckpointError):
        ElementChecker().check([(key + payload + good_key, good_payload)])


@pytest.mark.parametrize("good", [tensor(INT64, int64_val=[5]), compressed(component(INT64, sizes=[8]))])
def test_an_element_that_names_more_tensors_than_it_has_is_refused(good):
    key, payload = element_of(good)
    more = key.replace(b"Root@@next", b"R@@x@@nex1")
    ElementChecker().check([(key, payload)])
    for before in ([], [(key, payload)]):
        with pytest.raises(CorruptCheckpointError, match="names 2 tensors, but has 1"):
            ElementChecker().check([*before, (more, payload)])


COMMON = element_of(compressed(component(INT64, 2, sizes=[16]), component(STRING, sizes=[5])))
KEY_END = len(b"\x0a\x14tensorflow::Iterator\x12")


def is_refused(checker: ElementChecker, element: Element) -> bool:
    try:
        checker.check([element])
    except CorruptCheckpointError:
        return True
    return False


@pytest.mark.parametrize("size", range(KEY_END + 3))
def test_a_key_that_ends_early_is_judged_as_without_a_good_element_before(size):
    key, payload = COMMON
    checker = ElementChecker()
    checker.check([COMMON])
    assert is_refused(checker, (key[:size], payload)) == is_refused(ElementChecker(), (key[:size], payload))


@given(st.sampled_from([0, 1]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_good_element_before_it_changes_nothing_about_a_damaged_one(part, position, mask):
    """The check of the first element of a size is the thorough one."""
    damaged = [bytearray(each) for each in COMMON]
    damaged[part][position % len(damaged[part])] ^= mask
    element = bytes(damaged[0]), bytes(damaged[1])
    checker = ElementChecker()
    checker.check([COMMON])
    assert is_refused(checker, element) == is_refused(ElementChecker(), element)


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_a_good_element_before_it_changes_nothing_about_one_of_the_same_size(metadata, data):
    key = b"\x0a\x14tensorflow::Iterator\x12" + bytes([len(metadata)]) + metadata
    element = key, COMMON[1][:40] + data + COMMON[1][40 + len(data) :]
    checker = ElementChecker()
    checker.check([COMMON])
    assert is_refused(checker, element) == is_refused(ElementChecker(), element)


@pytest.mark.parametrize("size", [9000, 20])
def test_a_hostile_element_is_refused_as_a_view_too(size):
    good = element_of(compressed(component(INT64, sizes=[8]), data=b"d" * size))
    bad = element_of(compressed(component(INT64, sizes=[800]), data=b"d" * size))
    checker = ElementChecker()
    checker.check([good, (good[0], memoryview(good[1])), good])
    assert is_refused(checker, (bad[0], memoryview(bad[1])))


def test_long_descriptions_of_tensors_are_not_kept_in_memory():
    """A batch of texts has the length of each text in its description."""
    checker = ElementChecker()
    texts = [component(STRING, 20_000, sizes=[number % 100 + 1] * 20_000) for number in range(100)]
    data = bytes(20_000 * 2)
    elements = [element_of(compressed(each, data=data + bytes(number))) for number, each in enumerate(texts)]
    tracemalloc.start()
    checker.check(elements)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10 * 20_000


def test_garbage_is_refused():
    chance = random.Random(0)
    for size in range(1, 200):
        with pytest.raises(CorruptCheckpointError):
            ElementChecker().check([(b"", b"\xff" + chance.randbytes(size))])


@pytest.fixture
def restoring() -> Iterator[tuple[list[Element], object]]:
    """The state of an iterator, and a function that restores the iterator to a state."""
    with v1.Graph().as_default() as graph:
        dataset = tf.data.Dataset.range(100).map(lambda n: (n, tf.strings.as_string(n))).shuffle(5, seed=1)
        iterator = v1.data.make_initializable_iterator(dataset.batch(3))
        upcoming = iterator.get_next()
        iterators = GraphIterators(graph, external_state_policy_number("fail"))
        with v1.Session() as session:
            session.run(iterator.initializer)
            session.run(upcoming)
            snapshot = iterators.snapshot(session)
            (state,) = [(state.name, list(state.elements)) for state in snapshot.states()]
            snapshot.release()

            def restore(elements: list[Element]) -> object:
                batches = iter([ElementBatch(range(len(elements)), elements)])
                iterators.restore(session, [StoredState(state[0], len(elements), batches)])
                return session.run(upcoming)

            yield state[1], restore


def test_a_real_state_is_accepted(restoring):
    elements, restore = restoring
    assert len(restore(elements)[0]) == 3


@pytest.mark.parametrize("what", ["a huge shape without values", "a compressed tensor larger than its shape"])
def test_a_hostile_element_is_refused_by_a_restore_and_the_iterator_can_be_used(restoring, what):
    elements, restore = restoring
    for number, (key, _) in enumerate(elements):
        hostile = [*elements[:number], (key, element_of(HOSTILE[what])[1]), *elements[number + 1 :]]
        with pytest.raises(CorruptCheckpointError):
            restore(hostile)
    assert len(restore(elements)[0]) == 3
