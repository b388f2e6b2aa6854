"""Shards as Parquet files: a column `image` that `datasets` and the Hugging Face viewer decode, columns for what every line
has, and the whole line as JSON: rows may carry columns of any type.

Images are compressed already, so they stand in the file as they are: one that is to be looked at is read from its place, without
the rest of the file.
"""

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglaunch import strict_json
from dglaunch.data.task import Record
from dglaunch.files import open_regular
from dglaunch.output.lines import file_name_of, result_of

if TYPE_CHECKING:
    import pyarrow as pa

ROWS, ROW_BYTES = 100, 1 << 27
"""Images, and their bytes, of a group of rows; a reader holds at least as much."""


def _schema() -> "pa.Schema":
    import pyarrow as pa

    kinds = {"index": pa.int64(), "sample": pa.int64(), "prompt": pa.string(), "seed": pa.int64()}
    kinds |= {"width": pa.int64(), "height": pa.int64(), "file_name": pa.string()}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    return pa.schema(
        {"image": image, **kinds, "ledger": pa.string()}, metadata={"huggingface": strict_json.dumps(features)}
    )


def write(target: Path, images: Iterable[tuple[Record, bytes]]) -> None:
    """Write a shard.

    Args:
        images: ledger line and bytes of each.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    kinds = [name for name in schema.names if name not in ("image", "ledger")]
    with ParquetWriter(target, schema, compression="none", use_dictionary=["prompt"]) as out:
        for group in _groups(images):
            rows = [
                {
                    "image": {"bytes": data, "path": file_name_of(record)},
                    **{name: record.get(name) for name in kinds},
                    "ledger": strict_json.dumps(record),
                }
                for record, data in group
            ]
            out.write_table(pa.Table.from_pylist(rows, schema=schema))


def writer_version() -> str:
    """Return what decides, beside the images, the bytes of a shard."""
    import pyarrow as pa

    return str(pa.__version__)


def _groups(images: Iterable[tuple[Record, bytes]]) -> Iterator[list[tuple[Record, bytes]]]:
    group: list[tuple[Record, bytes]] = []
    size = 0
    for record, data in images:
        if group and (len(group) == ROWS or size + len(data) > ROW_BYTES):
            yield group
            group, size = [], 0
        group.append((record, data))
        size += len(data)
    if group:
        yield group


def places(shard: Path) -> Iterator[tuple[Record, int, int]]:
    """Yield the ledger line of each image of a shard, and where its bytes begin and how many they are.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no Parquet file, or none of dglaunch's.
    """
    from pyarrow.parquet import ParquetFile

    with (
        open_regular(shard) as file,
        ParquetFile(file) as parquet,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
    ):
        for number in range(parquet.num_row_groups):
            at = _begin_of_images(parquet.metadata.row_group(number))
            for row in parquet.read_row_group(number, columns=["image.bytes", "ledger"]).to_pylist():
                data, record = row["image"]["bytes"], result_of(row["ledger"].encode())
                at = whole.find(data, at)
                if at < 0 or record is None:
                    raise ValueError("it is none of dglaunch's shards")
                yield record, at, len(data)
                at += len(data)


def _begin_of_images(group: Any) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return next((chunk.data_page_offset for chunk in chunks if chunk.path_in_schema == "image.bytes"), 0)
