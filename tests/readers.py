"""Reads a table's directory with two independent readers and prints what each finds.

    python3 tests/readers.py DIRECTORY

Needs `deltalake` and `duckdb` from PyPI (and DuckDB's `delta` extension, else it reads the files that the log lists).
Prints one line a reader: version, rows, values of each column, sums; exits 1 when the readers differ.
"""

import sys
from decimal import Decimal

import duckdb
from deltalake import DeltaTable


def summary(connection, relation):
    """Rows, the values that are not NULL in each column, and exact sums of `_lsn` and the decimal columns."""
    columns = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    quoted = sorted(('"' + name.replace('"', '""') + '"', kind) for name, kind, *_ in columns)
    wanted = ["count(*)"] + [f"count({name})" for name, _ in quoted]
    wanted += [f"sum({name}::DECIMAL(38,9))" for name, kind in quoted if name == '"_lsn"' or kind.startswith("DECIMAL")]
    row = connection.execute(f"SELECT {', '.join(wanted)} FROM {relation}").fetchone()
    return [format(value.normalize(), "f") if isinstance(value, Decimal) else str(value) for value in row]


def main(directory):
    connection = duckdb.connect()
    table = DeltaTable(directory)
    arrow = table.to_pyarrow_table() if hasattr(table, "to_pyarrow_table") else table.to_pyarrow_dataset().to_table()
    connection.register("delta_rs", arrow)
    try:
        connection.execute("INSTALL delta; LOAD delta;")
        relation = f"delta_scan('{directory}')"
        name = "duckdb delta"
    except duckdb.Error as error:
        print(f"duckdb has no delta extension ({str(error).splitlines()[0]}): reading the listed files", file=sys.stderr)
        relation = f"read_parquet({table.file_uris()!r}, union_by_name = true)"
        name = "duckdb parquet"
    found = {"deltalake": summary(connection, "delta_rs"), name: summary(connection, relation)}
    for reader, values in found.items():
        print(f"{reader}: version {table.version()}, rows {values[0]}, {' '.join(values[1:])}")
    return 0 if len({tuple(values) for values in found.values()}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
