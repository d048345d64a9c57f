from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from finallyse.corpora import archives
from finallyse.corpora.archives import inspect_archive, unpack, unpack_collection
from finallyse.errors import UserError

FILES = {"corpus/a b.wav": b"a" * 1000, "corpus/deep/ünïcode.wav": bytes(range(256)) * 40, "empty.txt": b""}


def regular(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, io.BytesIO(content)


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, None]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def make(path: Path, files: dict[str, bytes] = FILES, extra=()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".deb":
        members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": None}
        make(path.with_suffix(".xz"), files, extra)
        members["data.tar.xz"] = path.with_suffix(".xz").read_bytes()
        with path.open("wb") as file:
            file.write(b"!<arch>\n")
            for name, content in members.items():
                file.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
                file.write(content + b"\n" * (len(content) % 2))
        path.with_suffix(".xz").unlink()
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + path.suffix[1:]) as file:
            for name, content in files.items():
                file.addfile(*regular(name, content))
            for info, content in extra:
                file.addfile(info, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".unpacked" not in path.parts
    }


@pytest.fixture(params=["zip", "tar.gz", "tar.bz2", "deb"])
def archive(request, tmp_path) -> Path:
    return make(tmp_path / f"corpus.{request.param}")


def test_everything_is_unpacked(archive, tmp_path):
    assert unpack(archive, tmp_path / "out") == (3, 11240)
    assert contents(tmp_path / "out") == FILES


def test_several_archives_share_a_folder(tmp_path):
    unpack(make(tmp_path / "one.zip", {"c/1": b"1"}), tmp_path / "out")
    unpack(make(tmp_path / "two.tar.gz", {"c/2": b"2"}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"c/1": b"1", "c/2": b"2"}


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interruption_at_any_member_is_continued(archive, tmp_path, monkeypatch, after):
    write, written = archives._write_member, []

    def interrupted(folder, name, size, content, progress):
        if len(written) == after:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        write(folder, name, size, content, progress)
        written.append(name)

    monkeypatch.setattr(archives, "_write_member", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    again = []
    monkeypatch.setattr(archives, "_write_member", lambda *arguments: (again.append(arguments[1]), write(*arguments)))
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert written + again == list(FILES), "what was written is not written again"


def test_a_newer_archive_replaces_what_the_older_one_left(tmp_path):
    archive = make(tmp_path / "c.zip", {"keep.wav": b"old!", "gone.wav": b"x"})
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "own.wav").write_bytes(b"not of the archive")
    make(archive, {"keep.wav": b"new!", "more.wav": b"y"})
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == {"keep.wav": b"new!", "more.wav": b"y", "own.wav": b"not of the archive"}


def test_the_list_is_kept_and_belongs_to_one_archive(tmp_path, monkeypatch):
    archive = make(tmp_path / "c.tar.gz")
    assert [member.name for member in inspect_archive(archive, "tar.gz")] == list(FILES)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_list_tar", None)
        inspect_archive(archive, "tar.gz")
    make(archive, {"other": b"1"})
    assert [member.name for member in inspect_archive(archive, "tar.gz")] == ["other"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "html"])
def test_damage_is_one_line_with_the_file_and_nothing_is_written(archive, tmp_path, damage):
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[: len(content) * 2 // 3]
    elif damage == "flipped":
        content[len(content) // 2 if archive.suffix != ".zip" else -22] ^= 0xFF  # zip: the end of its directory
    else:
        content = b"" if damage == "empty" else b"<html>busy</html>"
    archive.write_bytes(content)
    with pytest.raises(UserError) as error:
        unpack(archive, tmp_path / "out")
    assert str(archive) in str(error.value) and "delete it" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_member_of_a_zip_is_never_given_its_name(tmp_path):
    archive = make(tmp_path / "c.zip")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(zlib_of(FILES["corpus/deep/ünïcode.wav"])[20:40], b"0" * 20))
    with pytest.raises(UserError, match=r"c.zip: not a complete zip"):
        unpack(archive, tmp_path / "out")
    assert "corpus/deep/ünïcode.wav" not in contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"not a complete zip"):
        inspect_archive(archive, "zip", thorough=True, remember_for=tmp_path / "other.zip")


def zlib_of(content: bytes) -> bytes:
    import zlib

    packer = zlib.compressobj(-1, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    "member",
    [
        regular("/etc/passwd", b"x"),
        regular("../up.wav", b"x"),
        regular("a/../../up.wav", b"x"),
        regular("..\\up.wav", b"x"),
        regular("C:/up.wav", b"x"),
        regular(".unpacked/c.tar.gz.members", b"x"),
        special("link", tarfile.SYMTYPE, "../../secret"),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("deep/link", tarfile.LNKTYPE, "../secret"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("../folder", tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member[0].name}-{member[0].type.decode()}",
)
def test_hostile_tars_are_refused_before_anything_is_written(tmp_path, member):
    archive = make(tmp_path / "c.tar.gz", extra=[member])
    with pytest.raises(UserError, match=r"c.tar.gz: refused: member "):
        unpack(archive, tmp_path / "in" / "out")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.wav", "a/../../up.wav", "C:/up.wav"])
def test_hostile_zips_are_refused_before_anything_is_written(tmp_path, name):
    archive = make(tmp_path / "c.zip", {**FILES, name: b"x"})
    with pytest.raises(UserError, match=r"c.zip: refused: member "):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(tmp_path / "c.zip", tmp_path / "out")


def test_links_inside_become_copies(tmp_path):
    links = [special("deep/soft", tarfile.SYMTYPE, "../empty.txt"), special("hard", tarfile.LNKTYPE, "corpus/a b.wav")]
    unpack(make(tmp_path / "c.tar.gz", extra=links), tmp_path / "out")
    assert contents(tmp_path / "out") == {**FILES, "deep/soft": b"", "hard": FILES["corpus/a b.wav"]}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_link_to_nothing_is_told(tmp_path):
    archive = make(tmp_path / "c.tar.gz", extra=[special("soft", tarfile.SYMTYPE, "absent")])
    with pytest.raises(UserError, match=r"'soft' is a link to 'absent', which is not in it"):
        unpack(archive, tmp_path / "out")


def test_a_full_disk_stops_before_anything_is_written(archive, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 200_005_000))
    with pytest.raises(UserError, match=r"not enough space in .*out: unpacking corpus.* needs 11.2 kB"):
        unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_of_a_repeated_member_the_last_counts(tmp_path):
    archive = make(tmp_path / "c.tar.gz", {"a.wav": b"old and long", "b.wav": b"b"}, [regular("a.wav", b"new")])
    assert unpack(archive, tmp_path / "tar") == (2, 4)
    assert unpack(archive, tmp_path / "tar") == (2, 4)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        for name, content in (("a.wav", b"old and long"), ("b.wav", b"b"), ("a.wav", b"new")):
            file.writestr(name, content)
    unpack(tmp_path / "c.zip", tmp_path / "zip")
    assert contents(tmp_path / "tar") == contents(tmp_path / "zip") == {"a.wav": b"new", "b.wav": b"b"}
    links = [special("a.wav", tarfile.SYMTYPE, "b.wav")]
    unpack(make(tmp_path / "l.tar.gz", {"a.wav": b"old and long", "b.wav": b"b"}, links), tmp_path / "links")
    assert contents(tmp_path / "links") == {"a.wav": b"b", "b.wav": b"b"}


def test_a_member_larger_than_the_archive_is_told_at_once(tmp_path):
    info = tarfile.TarInfo("huge.wav")
    info.size = 10**13
    with gzip.open(tmp_path / "c.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2000))
    with pytest.raises(UserError, match=r"c.tar.gz: not a complete tar.gz \(a member is larger than the archive\)"):
        unpack(tmp_path / "c.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("name", ["", ".", "./", "a/.."])
def test_members_need_names(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("a.wav", b"a")
        file.writestr("placeholder", b"b")
        file.filelist[-1].filename = file.filelist[-1].orig_filename = name
    archives = [tmp_path / "c.zip"]
    if not name.endswith("/"):
        archives.append(make(tmp_path / "c.tar.gz", extra=[regular(name, b"b")]))
    for archive in archives:
        if archive.suffix == ".zip" and name == "./":
            unpack(archive, tmp_path / "zip")  # a folder
            continue
        with pytest.raises(UserError, match=r"c\..*: refused: "):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_archive_without_files_is_told(tmp_path):
    for suffix in ("zip", "tar.gz"):
        with pytest.raises(UserError, match="it contains no files"):
            unpack(make(tmp_path / f"c.{suffix}", {}), tmp_path / "out")


def test_a_debian_package_without_sense_is_told(tmp_path):
    (tmp_path / "c.deb").write_bytes(b"!<arch>\n" + b"debian-binary".ljust(48) + b"many".ljust(10) + b"`\n")
    with pytest.raises(UserError, match="the size of its debian-binary is no number"):
        unpack(tmp_path / "c.deb", tmp_path / "out")


def test_a_damaged_list_is_as_good_as_none(tmp_path):
    archive = make(tmp_path / "c.zip", {f"{n}.wav": b"x" for n in range(30)})
    inspect_archive(archive, "zip")
    listed = tmp_path / ".c.zip.members"
    whole = listed.read_bytes().splitlines(keepends=True)
    for text in (b"".join(whole[:20]), b"\xff" + whole[0], b"7\n", b"[]\n", b"", whole[0] + b"".join(whole[:0:-1])):
        listed.write_bytes(text)
        assert len(inspect_archive(archive, "zip")) == 30
        assert listed.read_bytes() == b"".join(whole)


def test_a_forged_list_leads_nowhere(tmp_path):
    archive = make(tmp_path / "in" / "c.zip")
    (tmp_path / "secret").write_bytes(b"kept")
    forged = [archives.Member("../secret", 4), archives.Member("a", 0, "../../secret")]
    for member in forged:
        archives._write_list(tmp_path / "out" / ".unpacked" / "c.zip.members", [1, 2], [member])  # of an older archive
        archives._write_list(archives._list_file(archive), archives._identity(archive), [member])
        unpack(archive, tmp_path / "out")
        assert contents(tmp_path / "out") == FILES and (tmp_path / "secret").read_bytes() == b"kept"


def test_what_is_no_archive_is_told(tmp_path):
    with pytest.raises(UserError, match=r"x.rar: not an archive that can be unpacked; known: .zip"):
        unpack(tmp_path / "x.rar", tmp_path)
    with pytest.raises(UserError, match=r"x.zip: no such archive"):
        unpack(tmp_path / "x.zip", tmp_path)


def test_a_collection_is_laid_out_and_replaced(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(name.encode())
    assert unpack_collection(tmp_path / "out", [tmp_path / "a.wav", tmp_path / "b.wav"], "collection.csv") == 2
    unpack_collection(tmp_path / "out", [tmp_path / "b.wav"], "collection.csv")
    assert contents(tmp_path / "out") == {"b.wav": b"b.wav"}
