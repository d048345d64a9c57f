"""The tables of a training, however a disk or an editor has left them."""

from __future__ import annotations

from pathlib import Path

import pytest

from finallyse.training.log import Table


def table(path, step=100):
    opened = Table(path, step)
    opened.close()
    return path.read_text()


DAMAGE = [b"\xff\xfe", b"2,\xc3\x28", b"2", b"2,0.5,0.5", b"", b"x,0.5", b"9" * 5000 + b",1", b"\0,1"]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_row_is_left_out_and_the_others_stay(tmp_path, damage):
    (tmp_path / "history.csv").write_bytes(b"step,loss\n1,0.9\n" + damage + b"\n3,0.7\n")
    assert table(tmp_path / "history.csv") == "step,loss\n1,0.9\n3,0.7\n"


def test_a_table_without_its_header_is_kept_beside(tmp_path, caplog):
    damaged = b"st\xffp,loss\n1,0.9\n"
    (tmp_path / "history.csv").write_bytes(damaged)
    assert table(tmp_path / "history.csv") == ""
    assert (tmp_path / "history.csv.damaged").read_bytes() == damaged
    assert "history.csv: damaged, moved to history.csv.damaged; a new table begins" in caplog.text


def test_rows_beyond_the_state_are_removed_and_new_columns_added(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n1,0.9\n2,0.8\n3,0.7\n")
    opened = Table(path, 2)
    opened.append([{"step": 3, "loss": 0.5, "lr": 0.25}])
    opened.close()
    assert path.read_text() == "step,loss,lr\n1,0.9,\n2,0.8,\n3,0.5,0.25\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_table(tmp_path):
    opened = Table(tmp_path / "history.csv", 0)
    opened.close()
    opened.columns, opened._file = ["step"], Path("/dev/full").open("a")  # noqa: SIM115  to close it would fail as well
    with pytest.raises(OSError, match="No space left on device") as error:
        opened.append([{"step": 1}])
    assert error.value.filename == str(tmp_path / "history.csv")
