"""The files that a one-shot manifest names: refused before any run if they are wrong."""

import dataclasses

import pytest

from enkg.errors import InputError
from enkg.execute.manifest import Manifest, OneShot, Port
from enkg.execute.oneshot import OneShotDriver, check


def manifest(folder, **oneshot) -> Manifest:
    return Manifest(
        name="bench",
        input=Port((3,)),
        output=Port((3,)),
        oneshot=OneShot(("cp", "{input}", "{output}"), **oneshot),
        folder=folder,
    )


@pytest.mark.parametrize(
    ("oneshot", "said"),
    [
        ({"templates": ("../a",)}, "without .."),
        ({"copy": ("/etc/passwd",)}, "without .."),
        ({"link": ("a/../../b",)}, "without .."),
        ({"stdin": "/dev/stdin"}, "without .."),
        ({"error_file": "../ERROR"}, "without .."),
        ({"copy": ("",)}, "without .."),
        ({"templates": ("no",)}, "there is no file"),
        ({"link": ("no",)}, "there is no file"),
        ({"templates": ("data",)}, "is no file"),
        ({"templates": ("unknown.in",)}, r"unknown.in: there is no placeholder \{menber\}"),
        ({"copy": ("input.npy",)}, "two files"),
        ({"copy": ("output.npy",)}, "two files"),
        ({"copy": ("plain.in",), "link": ("./plain.in",)}, "two files"),
        ({"error_file": "output.npy"}, "two files"),
        ({"link": ("data",), "error_file": "data/ERROR"}, "is a file or a link"),
        ({"link": ("data",), "copy": ("data/a",)}, "is a file or a link"),
        ({"stdin": "plain.in"}, "oneshot.stdin"),
    ],
)
def test_that_paths_stay_inside_the_folder_and_out_of_each_others_way(tmp_path, oneshot, said):
    (tmp_path / "data").mkdir()
    for name in ("data/a", "plain.in", "input.npy", "output.npy"):
        (tmp_path / name).touch()
    (tmp_path / "unknown.in").write_text("{menber}")
    with pytest.raises(InputError, match=said):
        check(manifest(tmp_path, **oneshot))
    check(manifest(tmp_path, copy=("data",), stdin="data/a"))


@pytest.mark.parametrize("name", ["/tmp/x.npy", "../x.npy", "a/../../x.npy", "."])
@pytest.mark.parametrize("port", ["input", "output"])
def test_that_input_and_output_stay_inside_the_run_directory(tmp_path, port, name):
    wrong = dataclasses.replace(manifest(tmp_path), **{port: Port((3,), file=name)})
    with pytest.raises(InputError, match=f"`{port}.file`"):
        OneShotDriver(wrong, None, tmp_path)
    with pytest.raises(InputError, match="two files"):
        check(
            dataclasses.replace(
                manifest(tmp_path),
                **{port: Port((3,), file="a//b")},
                **{"output" if port == "input" else "input": Port((3,), file="a/b")},
            )
        )


def test_that_a_manifest_without_the_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no table"):
        check(dataclasses.replace(manifest(tmp_path), oneshot=None))
