"""The tests use their own folders: files in the host's folders, or in a user's installation, change nothing."""

import os
from pathlib import Path

import folder_paths

import nodes
from guidekit.demo import own_folders

HOST = Path(os.environ["GUIDEKIT_COMFYUI"]).resolve()


def test_every_folder_of_the_host_is_elsewhere(host):
    """With all its nodes loaded, some of which add folders."""
    of_models = [path for paths, _ in folder_paths.folder_names_and_paths.values() for path in paths]
    get = ("output", "temp", "input", "user")
    of_users = [getattr(folder_paths, f"get_{name}_directory")() for name in get]
    assert len(of_models) > 20
    for path in map(Path, of_models + of_users):
        assert path.is_relative_to(own_folders.BASE.name), path
        assert not path.resolve().is_relative_to(HOST), path
    assert Path(nodes.__file__).is_relative_to(HOST)


def test_no_file_is_seen(host):
    """Not even those that come with the host."""
    kinds = folder_paths.folder_names_and_paths
    assert {kind: names for kind in kinds if (names := folder_paths.get_filename_list(kind))} == {}
