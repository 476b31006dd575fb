"""The page as a browser shows it: rendered whole, offline, without a script or an error."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ics_apps.reports import write_comparison, write_report
from ics_apps.runs import layout

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<img src=x onerror=document.title='taken'>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on PATH")


def browse(profile: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
               "--enable-logging=stderr", f"--user-data-dir={profile}", *arguments, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_browser_renders_every_section_without_an_error(make_run, tmp_path):
    done = browse(tmp_path / "profile", write_report(make_run()), "--dump-dom")
    for section in ("curves", "drift", "units", "rms", "streams", "cases", "config", "origin"):
        assert f'<section id="{section}">' in done.stdout
    assert done.stdout.count("<svg") >= 8
    assert "CONSOLE" not in done.stderr


def test_no_script_runs_from_names(make_run, tmp_path):
    run = make_run(
        layers=[(EVIL, "activation", EVIL), ("</svg></text><script>document.title='taken'</script>", "norm", "x")]
    )
    (run / layout.METRICS_SUMMARY).write_text(json.dumps({EVIL: 1.0}), encoding="utf-8")
    done = browse(tmp_path / "profile", write_report(run), "--dump-dom")
    assert "<title>unet-group" in done.stdout
    assert "CONSOLE" not in done.stderr  # a script that the policy stopped would be reported here


def test_console_check_sees_what_the_policy_stops(make_run, tmp_path):
    page = write_report(make_run())
    page.write_text(
        page.read_text(encoding="utf-8").replace("<footer>", "<script>1</script><footer>"), encoding="utf-8"
    )
    assert "CONSOLE" in browse(tmp_path / "profile", page, "--dump-dom").stderr


def test_screenshot_is_not_blank(make_run, tmp_path):
    picture = tmp_path / "page.png"
    browse(tmp_path / "profile", write_report(make_run()), f"--screenshot={picture}", "--window-size=1200,2400")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1200, 2400)
    assert len(content) > 60_000  # an empty page of this size compresses to a tenth of it


def test_comparison_renders_without_an_error(make_watched, tmp_path):
    page = write_comparison([make_watched("a"), make_watched("b", speed=2.0)], tmp_path / "comparison.html")
    done = browse(tmp_path / "profile", page, "--dump-dom")
    assert done.stdout.count("<svg") == 8
    assert "CONSOLE" not in done.stderr
