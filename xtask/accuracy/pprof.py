"""The samples of a pprof profile (github.com/google/pprof, proto/profile.proto)."""

import gzip

import zstandard


def stacks(data, wanted):
    """(function names root first, value) for each sample with a value of that type."""
    for names, values, _labels in samples(data):
        if values[wanted]:
            yield names, values[wanted]


def samples(data):
    """(function names root first, values by type, labels) for each sample."""
    types, found, locations, functions, strings = [], [], {}, {}, []
    for field, value in _fields(_unpacked(data)):
        if field == 1:
            types.append(dict(_fields(value))[1])
        elif field == 2:
            found.append(list(_fields(value)))
        elif field == 4:
            location = list(_fields(value))
            lines = [dict(_fields(line))[1] for number, line in location if number == 4]
            locations[dict(location)[1]] = lines
        elif field == 5:
            function = dict(_fields(value))
            functions[function[1]] = function.get(2, 0)
        elif field == 6:
            strings.append(value.decode())
    types = [strings[kind] for kind in types]
    for sample in found:
        ids = _repeated(sample, 1)
        # Leaf first, and of inlined functions the innermost first.
        leaf_first = [strings[functions[line]] for one in ids for line in locations[one]]
        values = dict(zip(types, _repeated(sample, 2)))
        labels = {}
        for label in (dict(_fields(value)) for number, value in sample if number == 3):
            labels[strings[label[1]]] = strings[label[2]] if 2 in label else label.get(3, 0)
        yield leaf_first[::-1], values, labels


def _unpacked(data):
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _repeated(fields, wanted):
    """Integers of a repeated field, packed or not."""
    numbers = []
    for field, value in fields:
        if field != wanted:
            continue
        if isinstance(value, int):
            numbers.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(number)
    return numbers


def _fields(data):
    """(number, value) of each field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            value = data[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield tag >> 3, value


def _varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
