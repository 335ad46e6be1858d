"""Random changes of bytes, of trees of JSON or YAML, of tables and of DICOM headers; each draws from one generator."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.transforms.dicom.test_dicom_mutations import replace_element
from transforms.dicom.elements import TAGS

SECRET = "Quillfeather"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64,
    10**30, "", " ", "0", "-1", "nan", "1e400", "auto", "../../etc/passwd", "/etc/passwd", "x" * 5000, "\x00", "\ud800",
    "é\u202e", "http://127.0.0.1:9/x", "file:///etc/passwd", "!!python/object/apply:os.system [id]", "{}", "[]", [], {},
    [None], [[]], [1, 2], [-1, 1e308], {"a": 1}, {"file": "x"}, [[1, 2], [3]], "2020-13-45", "1:2:3", "~", "=", "<<",
)  # fmt: skip
_NAMES = (
    "file", "url", "pretrained_cfg", "hf_hub_id", "custom_load", "checkpoint_path", "state_dict", "depth", "img_size",
    "patch_size", "embed_dim", "weights", "seed", "", "a.b", "x" * 300, "__class__", "arch",
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Something that does not belong there: of another type, too large, nested too deep, or a path or address."""
    roll = rng.random()
    if roll < 0.03:
        nested: Any = 1
        for _ in range(rng.choice([20, 200])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    if roll < 0.25:
        return rng.choice([rng.randint(-5, 5), rng.randint(-(10**6), 10**6), rng.uniform(-1e3, 1e3)])
    return rng.choice(ODD)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a tree."""
    own = (
        list(tree.items())
        if isinstance(tree, dict)
        else list(enumerate(tree))
        if isinstance(tree, list)
        else []
    )
    return [(tree, key) for key, _ in own] + [place for _, one in own for place in places(one)]


def change_tree(rng: random.Random, tree: Any) -> Any:
    """Change one to three places of a tree: another value, one less, one more, or two that change places."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = places(tree)
        if not found:
            return odd_value(rng)
        (holder, key), roll = rng.choice(found), rng.random()
        if roll < 0.6:
            holder[key] = odd_value(rng)
        elif roll < 0.75:
            del holder[key]
        elif roll < 0.9 and isinstance(holder, dict):
            holder[rng.choice(_NAMES)] = odd_value(rng)
        else:
            other, name = rng.choice(found)
            if key in (holder if isinstance(holder, dict) else range(len(holder))):
                other[name] = json.loads(json.dumps(holder[key], default=str))
    return odd_value(rng) if rng.random() < 0.01 else tree


def change_bytes(rng: random.Random, content: bytes, first: int = 0, last: int | None = None) -> bytes:
    """Flip, cut, repeat, remove or insert bytes between two places."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(first, max(min(last or len(changed), len(changed)), first + 1))
        size = rng.choice([1, 2, 4, 16, 200])
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + size] = rng.randbytes(size)
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = rng.choice([rng.randbytes(size), b"\xff" * size, b"\0" * size])
            case 4:
                changed[at:at] = changed[at : at + size]
            case _ if rng.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def change_json(rng: random.Random, path: Path) -> None:
    """Change a JSON file: mostly its tree, else its text."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.2:
        path.write_bytes(change_bytes(rng, text.encode()))
        return
    changed = json.dumps(change_tree(rng, json.loads(text)))
    if rng.random() < 0.02:
        changed = changed.replace("1", "1" * 5000, 1)
    path.write_text(changed, encoding="utf-8")


def change_yaml(rng: random.Random, path: Path) -> None:
    """Change a YAML file: mostly its tree, else its text."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.25:
        path.write_bytes(change_bytes(rng, text.encode()))
        return
    changed = change_tree(rng, yaml.safe_load(text))
    path.write_bytes(
        yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    )


def change_parquet(rng: random.Random, path: Path) -> None:
    """Change a table: a cell, the type of a column, its columns or rows; else its bytes."""
    if rng.random() < 0.25:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
        return
    table = pq.read_table(path)
    for _ in range(rng.choice([1, 1, 2])):
        if not table.num_columns:
            break
        number = rng.randrange(table.num_columns)
        name, column = table.column_names[number], table.column(number)
        match rng.randrange(7):
            case 0 | 1 | 2 if len(column):
                values = column.to_pylist()
                where = range(len(values)) if rng.random() < 0.2 else [rng.randrange(len(values))]
                value = odd_value(rng)
                for row in where:
                    values[row] = value
                table = table.set_column(number, name, _column(values, column.type))
            case 3:
                table = table.remove_column(number)
            case 4:
                table = table.rename_columns(
                    [f"{one}x" if one == name else one for one in table.column_names]
                )
            case 5:
                table = (
                    pa.concat_tables([table, table.slice(0, 1)]) if rng.random() < 0.5 else table.slice(0, 0)
                )
            case _:
                table = table.set_column(number, name, _column([odd_value(rng)] * len(column), column.type))
    pq.write_table(table, path)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    for typed in (lambda: pa.array(values, type=kind), lambda: pa.array(values)):
        try:
            return typed()
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    return pa.array([str(value).encode("utf-8", "replace").decode() for value in values])


def change_csv(rng: random.Random, path: Path) -> None:
    """Change a CSV: mostly cells and columns, else its text."""
    if rng.random() < 0.3:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
        return
    frame = pd.read_csv(path, dtype=object)
    for _ in range(rng.choice([1, 1, 2, 4])):
        column = rng.choice(list(frame.columns))
        match rng.randrange(6):
            case 0 | 1 | 2:
                frame.loc[rng.randrange(len(frame)), column] = (
                    str(odd_value(rng)).encode("utf-8", "replace").decode()
                )
            case 3:
                frame = frame.rename(
                    columns={column: rng.choice([*frame.columns, "label", "nodule_id", "z", ""])}
                )
            case 4:
                frame = pd.concat([frame, frame.iloc[:1]], ignore_index=True)
            case _ if frame.shape[1] > 1:
                frame = frame.drop(columns=[column])
        if not len(frame.columns):
            break
    path.write_text(frame.to_csv(index=False, sep=rng.choice([",", ",", ";", "\t"])), encoding="utf-8")


def _raw(rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return rng.randbytes(rng.choice([0, 1, 2, 4, 12, 64]))
        case 1:
            return rng.randrange(65536).to_bytes(2, "little")
        case 2:
            numbers = [
                rng.choice([0.0, -1.0, 1e-9, 1e9, 1e308, 0.5, rng.uniform(-1e4, 1e4)])
                for _ in range(rng.randrange(8))
            ]
            return "\\".join(f"{number:g}" for number in numbers).encode()
        case _:
            words = [
                "nan",
                "inf",
                "1_0",
                "0x10",
                SECRET,
                "1\\2\\x",
                "1.2.840.10008.1.2",
                "\\",
                "HU",
                "AXIAL",
                "9" * 400,
            ]
            return rng.choice(words).encode()


def change_dicom(rng: random.Random, files: list[Path]) -> None:
    """Change headers of a series: values of elements that are read, elements that do not belong, or raw bytes."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        keyword, value, roll = rng.choice(sorted(TAGS)), _raw(rng), rng.random()
        seed = rng.random()
        for file in files if rng.random() < 0.5 else [rng.choice(files)]:
            content, own = file.read_bytes(), random.Random(seed)
            if roll < 0.6:
                try:
                    content = replace_element(content, keyword, None if roll < 0.1 else value, False)
                except (struct.error, KeyError, UnicodeError):  # Changed before beyond what this can parse.
                    content = change_bytes(own, content, 132)
            elif roll < 0.9:
                content = change_bytes(own, content, own.choice([0, 132, 300]), len(content) - 384)
            else:
                content = _with_sequence(own, content)
            file.write_bytes(content)


def _with_sequence(rng: random.Random, content: bytes) -> bytes:
    """Insert a sequence of undefined length, nested up to 3000 deep or never closed, after the file meta group."""
    at = 144 + struct.unpack_from("<L", content, 140)[0] if len(content) > 144 else len(content)
    opening = struct.pack("<HH2sHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    depth = rng.choice([1, 3, 50, 3000])
    return content[:at] + opening * depth + closing * rng.choice([0, depth]) + content[at:]


def change_tensors(rng: random.Random, path: Path) -> None:
    """Change a safetensors file: tensors missing, of another shape, type or name, not finite; else its bytes."""
    from safetensors.numpy import load_file, save_file

    roll = rng.random()
    if roll < 0.5:
        content = path.read_bytes()
        end = 8 + struct.unpack_from("<Q", content)[0]
        path.write_bytes(change_bytes(rng, content, 0, end if roll < 0.35 else None))
        return
    state = load_file(path)
    for _ in range(rng.choice([1, 1, 3])):
        name = rng.choice(sorted(state))
        tensor = state.pop(name)
        match rng.randrange(6):
            case 0:
                state[name] = np.full_like(
                    tensor, rng.choice([np.nan, np.inf]) if tensor.dtype.kind == "f" else 99
                )
            case 1:
                state[name] = tensor.astype(rng.choice(["float64", "int64", "uint8", "float16", "bool"]))
            case 2:
                state[name] = tensor.reshape(-1)[: rng.randrange(tensor.size + 1)]
            case 3:
                state[f"{name}.x"] = tensor
            case 4:
                state[name] = tensor[None]
            case _:
                pass
        if not state:
            break
    save_file({name: np.ascontiguousarray(one) for name, one in state.items()}, path)
