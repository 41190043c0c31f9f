# SPDX-License-Identifier: MIT
"""The list of mounted file systems is read as the kernel writes it."""

from pathlib import Path

import pytest

from procbus.system.mounts import Mount, parse


def test_fields_are_read_however_many_tags_stand_before_the_dash() -> None:
    text = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw,errors=remount-ro\n"
        "32 22 0:51 /part /mnt/share rw master:1 shared:2 - cifs //server/share rw,soft\n"
    )

    assert list(parse(text)) == [
        Mount("/", "/", "ext4", "rw,errors=remount-ro"),
        Mount("/part", "/mnt/share", "cifs", "rw,soft"),
    ]


def test_blanks_and_backslashes_in_paths_are_decoded() -> None:
    [mount] = parse(r"1 1 8:1 /a\011b /my\040disk\134x rw - xfs /dev/sdb rw")

    assert (mount.part, mount.point) == ("/a\tb", "/my disk\\x")


@pytest.mark.parametrize(
    "line", ["", "1 2 3", "1 1 8:1 / / rw ext4", "1 1 8:1 - ext4 x rw", "a - "]
)
def test_odd_line_is_left_out(line: str) -> None:
    assert list(parse(f"{line}\n22 1 8:1 / / rw - ext4 /dev/sda1 rw")) == [
        Mount("/", "/", "ext4", "rw")
    ]


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux has this file")
def test_own_list_of_this_machine_can_be_read() -> None:
    mounts = list(parse(Path("/proc/self/mountinfo").read_text(errors="replace")))

    assert "/proc" in {mount.point for mount in mounts}
