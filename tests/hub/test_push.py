"""``hpm-bench push``: what is shown is what is sent, what is sent is what was tried, and it comes back as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard as HubCard

import hpm_robustbench
from hpm_robustbench.case import Case, prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import DownloadFailed, IntegrityError, InvalidInput, StorageProblem, UsageProblem
from hpm_robustbench.hub.origin import Origin
from hpm_robustbench.hub.trial import published
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL, builtin_specs

CARD = Path("digits/Linf") / f"{DIGITS_MODEL}.json"
REPO = "me/hpm-digits"
FILES = {"NOTICE", "README.md", "config.json", "hpm_card.json", "model.safetensors", "robustness.svg"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The embedded model as the committed card's trial met it."""
    [spec] = builtin_specs()
    return prepare(spec, RunOptions(n_ex=500, batchings=tuple(Batching), output=tmp_path_factory.mktemp("tried")))


@pytest.fixture
def output(case: Case, tmp_path: Path) -> Path:
    """A folder with that card; its answers are those of this machine, whose last bits may differ."""
    card = json.loads((Path(__file__).parents[2] / "model_cards" / CARD).read_text())
    states = {(plan.target, plan.batching.value): plan.state_sha256 for plan, _ in case.trials}
    for evaluation in card["hpm_bench"]["evaluations"]:
        evaluation["state_sha256"] = states[evaluation["target"], evaluation["batching"]]
    folder = tmp_path / "output"
    write(folder, card)
    shutil.copytree(case.output / "prototypes", folder / "prototypes")
    return folder


def write(output: Path, card: dict[str, object]) -> None:
    path = output / "model_cards" / CARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card))


def read(output: Path) -> dict[str, object]:
    return json.loads((output / "model_cards" / CARD).read_text())


@pytest.fixture
def push(output: Path) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        given = ["push", "--model", DIGITS_MODEL, "--repo", REPO, "--output", str(output), *arguments]
        return CliRunner().invoke(cli, given, catch_exceptions=False)

    return run


def tried(case: Case, batching: Batching = Batching.SOLO) -> torch.nn.Module:
    return next(s.classifier for plan, s in case.trials if (plan.target, plan.batching) == ("hpm", batching))


def test_a_dry_run_shows_exactly_what_is_sent_and_opens_no_connection(hub, push, monkeypatch):
    with monkeypatch.context() as blocked:
        blocked.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
        shown = json.loads(push("--dry-run", "--format", "json").stdout)
        assert "model.safetensors" in push("--dry-run").stdout
    assert hub.asked == []
    assert push().stdout.startswith(f"sent: {hub.address}/{REPO}/commit/")
    sent = {path: content for path, content in hub.head(REPO).items() if path != ".gitattributes"}
    assert {row["path"]: row["size"] for row in shown["files"]} == {path: len(c) for path, c in sent.items()}
    assert set(sent) == FILES
    assert shown["readme"].encode() == sent["README.md"]
    assert b"Changed, too" not in sent["NOTICE"], "nothing was fine-tuned"


def test_a_folder_takes_what_would_be_sent_and_gives_the_same_classifier(case, hub, push, tmp_path, monkeypatch):
    """Without a connection; whatever else lies there stays, and nothing is written beside it."""
    with monkeypatch.context() as blocked:
        blocked.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
        written = Path(json.loads(push("--folder", str(tmp_path), "--format", "json").stdout)["folder"])
        assert push("--folder", str(tmp_path)).stdout == f"written: {written}\n"
        back = hpm_robustbench.HPMClassifier.from_pretrained(str(written))
    assert torch.equal(back(case.test.images[:60]), tried(case)(case.test.images[:60]))
    assert hub.asked == []
    push()
    sent = {path: content for path, content in hub.head(REPO).items() if path != ".gitattributes"}
    assert {path.name: path.read_bytes() for path in written.iterdir()} == sent
    (written / ".model.safetensors.x1y2").write_bytes(b"half")  # of a write that was killed
    push("--folder", str(tmp_path))
    (written / "config.json").unlink()
    (written / "thesis.tex").write_text("all of it")
    with pytest.raises(UsageProblem, match=r"got thesis\.tex there\. Next: name another --folder"):
        push("--folder", str(tmp_path))
    assert not (written / "config.json").exists()
    with pytest.raises(UsageProblem, match="--folder with --dry-run, --private, --revision"):
        push("--folder", str(tmp_path), "--dry-run", "--private", "--revision", "next")
    (tmp_path / "file").touch()
    with pytest.raises(StorageProblem, match="another one with --folder"):
        push("--folder", str(tmp_path / "file"))


def test_a_second_time_there_is_nothing_to_do(hub, push):
    push()
    done = push("--format", "json")
    assert not json.loads(done.stdout)["changed"]
    assert hub.repositories[REPO].messages == ["initial commit", f"Publish {DIGITS_MODEL} with HPM"]
    assert push().stdout.startswith("nothing to do: ")


@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_what_was_tried_comes_back_bit_for_bit_and_offline_too(batching, case, hub, push, clean_cache, monkeypatch):
    sent = json.loads(push("--batching", batching.value, "--format", "json").stdout)
    clean_cache("another")
    images = case.test.images[:60]
    expected = tried(case, batching)(images)
    assert torch.equal(hpm_robustbench.HPMClassifier.from_pretrained(REPO, revision="main")(images), expected)
    hub.close()
    back = hpm_robustbench.HPMClassifier.from_pretrained(REPO, revision=sent["commit"])
    assert torch.equal(back(images), expected)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    back = hpm_robustbench.HPMClassifier.from_pretrained(REPO, revision="main")
    assert (back.batching, torch.equal(back(images), expected)) == (batching, True)
    clean_cache("empty")
    with pytest.raises(DownloadFailed, match="not in the local cache"):
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)


def test_a_published_model_is_tried_on_the_same_road(case, hub, push, tmp_path):
    sent = json.loads(push("--include-backbone", "--format", "json").stdout)
    of_nobody = dict.fromkeys(("dataset", "threat_model", "eps", "weights", "name", "head", "about", "factory"))
    options = RunOptions(n_ex=500, batchings=tuple(Batching), output=tmp_path / "again")
    spec, options, ready, _ = published(f"hf:{REPO}@main", options, **of_nobody)
    again = prepare(spec, options, model=ready)
    assert [plan.run_key for plan, _ in again.trials] == [plan.run_key for plan, _ in case.trials]
    assert again.weights_sha256 == case.weights_sha256
    assert again.wrapped.notes == {**case.wrapped.notes, "published": f"hf:{REPO}@{sent['commit']}"}
    with pytest.raises(UsageProblem, match="--eps, --recipe, --hpm beside it"):
        said = {**of_nobody, "eps": "0.1", "recipe": "head", "knobs": ("beta=0.1",)}
        published(f"hf:{REPO}@main", options, **said)


def test_the_page_tells_the_verdict_how_to_load_and_the_limits(push):
    page = json.loads(push("--dry-run", "--format", "json").stdout)["readme"]
    data = HubCard(page).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "hpm-robustbench", "image-classification")
    assert data.model_name == "hpm-digits"
    numbers = {result.metric_name: result.metric_value for result in data.eval_results}
    solo = read_card(Path(__file__).parents[2] / "model_cards" / CARD).hpm_bench.headline
    assert numbers["HPM SOLO accuracy under AutoAttack (Linf 3/16)"] == solo.autoattack.value
    assert numbers["HPM SOLO accuracy under every attack (Linf 3/16)"] == solo.robust.value < solo.autoattack.value
    assert "**HPM SOLO: undecided, as far as 500 images can tell.**" in page
    assert "**HPM JOINT: it does not help here, it hurts.**" in page
    interval = f"{solo.robust.low:.2f} to {solo.robust.high:.2f}"
    numbers = f"{solo.clean.text} % | {solo.autoattack.text} % | **{solo.robust.text} %** | {interval} | 500"
    assert f"| HPM SOLO | {numbers} |" in page
    assert f'HPMClassifier.from_pretrained("{REPO}", revision="main")' in page
    assert f"hpm-bench run --model hf:{REPO}@main" in page
    assert "not the authors' implementation" in page


def test_the_plot_draws_the_numbers_of_the_card(hub, output, push):
    push()
    svg, ns = ElementTree.fromstring(hub.head(REPO)["robustness.svg"]), "{http://www.w3.org/2000/svg}"
    widths = [float(bar.get("width")) for bar in svg.iter(f"{ns}rect") if bar.get("class") == "fill"]
    evaluations = read_card(output / "model_cards" / CARD).hpm_bench.evaluations
    assert widths[:-1] == pytest.approx([5 * e.robust.value for e in evaluations])
    marks = [float(line.get("x1")) for line in svg.iter(f"{ns}line") if line.get("class") == "mark"]
    assert marks[:-1] == pytest.approx([150 + 5 * e.autoattack.value for e in evaluations if e.autoattack])
    shown = {text.text for text in svg.iter(f"{ns}text")}
    assert {e.robust.text for e in evaluations} <= shown
    assert not any(tag in {e.tag for e in svg.iter()} for tag in (f"{ns}script", f"{ns}image", f"{ns}foreignObject"))
    assert "](robustness.svg)" in hub.head(REPO)["README.md"].decode()


def test_a_signature_and_a_benchmarks_result_go_with_the_files(hub, push, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    options = ["--sign", str(key), "--eval-dataset", "bench/robust:digits"]
    shown = json.loads(push(*options, "--dry-run", "--format", "json").stdout)
    push(*options)
    held = hub.head(REPO)
    more = {"SHA256SUMS", "SHA256SUMS.sig", ".eval_results/hpm-robustbench.yaml"}
    assert set(held) == {".gitattributes", *FILES, *more}
    assert {row["path"]: row["sha256"] for row in shown["files"]} == {
        path: hashlib.sha256(content).hexdigest() for path, content in held.items() if path != ".gitattributes"
    }
    listed = dict(reversed(line.split("  ")) for line in held["SHA256SUMS"].decode().splitlines())
    assert set(listed) == {*FILES, ".eval_results/hpm-robustbench.yaml"}
    assert "ssh-keygen -Y verify" in held["README.md"].decode()
    assert not json.loads(push(*options, "--format", "json").stdout)["changed"]
    assert json.loads(push("--format", "json").stdout)["changed"]
    assert set(hub.head(REPO)) == {".gitattributes", *FILES}  # what told of other files is gone
    assert push().stdout.startswith("nothing to do: ")
    with pytest.raises(UsageProblem, match="owner/name:task"):
        push("--eval-dataset", "bench/robust")


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a\n---\nlicense: mit\n", "``` | ` |", "{{ 211 * 457 }}", "---"]
)
def test_a_hostile_card_stays_text(hostile, output, push):
    card = read(output)
    card |= {"name": hostile, "authors": hostile, "venue": hostile, "link": "javascript:alert(1)"}
    card["hpm_bench"]["notes"]["model"] = hostile
    write(output, card)
    page = json.loads(push("--dry-run", "--format", "json").stdout)["readme"]
    body = page.split("\n---\n", 1)[1]
    assert HubCard(page).data.license == "mit"
    assert "<script" not in page and "](javascript:" not in page and "\n---\n" not in body and "96427" not in page
    assert body.count("```") == 4
    assert all(line.count("|") in (0, 7) for line in body.splitlines())


def test_licences_that_do_not_let_anybody_publish_need_a_word(hub, output, push):
    for licence in ("CC-BY-NC-SA-4.0", "unknown"):
        card = read(output)
        card["hpm_bench"]["license"] = licence
        write(output, card)
        with pytest.raises(UsageProblem, match=f"add --allow-license {licence}"):
            push()
        assert hub.asked == []
        assert (
            f"license: {'other' if licence == 'unknown' else licence.lower()}"
            in push("--dry-run", "--allow-license", licence).stdout
        )


def test_only_what_was_tried_is_published(output, push, hub):
    card = read(output)
    for evaluation in card["hpm_bench"]["evaluations"]:
        evaluation["state_sha256"] = "0" * 64
    write(output, card)
    with pytest.raises(InvalidInput, match="one with other weights, images, knobs or answers"):
        push()
    with pytest.raises(InvalidInput, match="tells of no such trial"):
        push("--batching", "reference")
    shutil.rmtree(output / "model_cards")
    with pytest.raises(UsageProblem, match="try it first: hpm-bench run --model Digits2026ResNet-Linf"):
        push()
    assert hub.asked == []


@pytest.mark.parametrize(("knob", "value"), [("gamma", 1), ("beta", "half"), ("k", None)])
def test_a_card_with_knobs_of_another_version_is_refused(knob: str, value: object, output, push, hub):
    card = read(output)
    card["hpm_bench"]["defence"][knob] = value
    write(output, card)
    with pytest.raises(
        InvalidInput, match=f"a definition of HPM that this version knows in the card of .* got .*{knob}"
    ):
        push("--dry-run")


@pytest.mark.parametrize(
    ("file", "fault", "error"),
    [
        ("config.json", "flip", IntegrityError),
        ("model.safetensors", "flip", IntegrityError),
        ("model.safetensors", "cut", DownloadFailed),
    ],
)
def test_a_file_damaged_on_its_way_is_not_kept(file, fault, error, hub, push, loopback, tmp_path):
    push()
    hub.faults = [loopback.Fault(f"GET .*/{file}", times=99, **{fault: True})]
    with pytest.raises(error) as caught:
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)
    assert caught.value.exit_code == {IntegrityError: 4, DownloadFailed: 3}[error]
    assert not list((tmp_path / "cache").rglob(file))
    hub.faults = []
    assert hpm_robustbench.HPMClassifier.from_pretrained(REPO).config.beta == 0.5


def test_tensors_that_are_not_those_described_are_refused_and_leave_the_cache_valid(hub, push, loopback):
    good = json.loads(push("--format", "json").stdout)["commit"]
    files = hub.repositories[REPO].commits[good]
    stored = files["model.safetensors"].content
    other = loopback.Blob(stored[:-1] + bytes([stored[-1] ^ 1]), True)
    hub.repositories[REPO].commit("main", {**files, "model.safetensors": other}, "theirs")
    with pytest.raises(IntegrityError, match="sha256") as caught:
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)
    assert caught.value.exit_code == 4
    assert hpm_robustbench.HPMClassifier.from_pretrained(REPO, revision=good).config.beta == 0.5


def test_a_broken_download_goes_on_where_it_was_cut_off(hub, push, loopback, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    push()
    line = "GET .*/model.safetensors"
    hub.faults = [loopback.Fault(line, cut=True), loopback.Fault(line, 503, times=99)]
    with pytest.raises(DownloadFailed, match="503"):
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)
    hub.faults = []
    assert hpm_robustbench.HPMClassifier.from_pretrained(REPO).config.beta == 0.5
    ranges = [value for asked in hub.asked for name, value in asked.headers.items() if name.lower() == "range"]
    half = len(hub.head(REPO)["model.safetensors"]) // 2
    assert ranges and all(half - 1000 < int(told[len("bytes=") : -1]) <= half for told in ranges)


@pytest.mark.parametrize("told", [{"Retry-After": "7"}, {"RateLimit": '"resolvers";r=0;t=7'}])
def test_a_download_makes_the_pause_that_the_hub_asks_for(told, hub, push, loopback, clean_cache, monkeypatch):
    push()
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    hub.faults = [loopback.Fault("HEAD .*/config.json", 429, headers=told, times=2)]
    assert hpm_robustbench.HPMClassifier.from_pretrained(REPO).config.beta == 0.5
    assert pauses == [8]
    clean_cache("empty")
    hub.faults = [loopback.Fault("HEAD .*/config.json", 429, headers={"Retry-After": "3600"}, times=99)]
    with pytest.raises(DownloadFailed, match="too many requests, to be made again in 3600 s"):
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)


def test_a_download_from_a_hub_that_has_gone_silent_is_given_up(hub, push, loopback, clean_cache, monkeypatch):
    push()
    clean_cache("empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)  # of the first question
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.2)  # and of those after it
    hub.faults = [loopback.Fault("HEAD", delay=60.0, status=0, times=99)]
    with pytest.raises(DownloadFailed, match=r"the Hub could not be asked \(ReadTimeout.*connect, unset"):
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)


def test_another_repository_is_told_apart(hub, push, loopback):
    push()
    hub.repositories[REPO].commit("main", {"config.json": loopback.Blob(b'{"model_type": "bert"}', False)}, "theirs")
    with pytest.raises(InvalidInput, match=r"config\.json of a model that hpm-bench push has published"):
        hpm_robustbench.HPMClassifier.from_pretrained(REPO)
    hub.repositories[REPO].private = True
    with pytest.raises(DownloadFailed, match="no such repository"):
        hpm_robustbench.HPMClassifier.from_pretrained("me/absent")


def test_a_classifier_in_python_is_published_and_loaded_back(case, hub, output):
    [spec] = builtin_specs()
    origin = Origin(spec, case.test.dataset, case.wrapped.prototypes_from)
    classifier = hpm_robustbench.HPMClassifier.of(tried(case), origin)
    card = read_card(output / "model_cards" / CARD)
    sent = classifier.push_to_hub("me/from-python", card)
    assert set(hub.head("me/from-python")) == {".gitattributes", *FILES}
    back = hpm_robustbench.HPMClassifier.from_pretrained("me/from-python", revision=sent.commit)
    assert torch.equal(back(case.test.images[:30]), classifier(case.test.images[:30]))
    unknown = card.hpm_bench.model_copy(update={"license": "unknown"})
    with pytest.raises(UsageProblem, match="anybody may publish"):
        classifier.push_to_hub("me/other", card.model_copy(update={"hpm_bench": unknown}))
    with pytest.raises(InvalidInput, match="plain RobustBench entry"):
        classifier.push_to_hub("me/other", card.model_copy(update={"hpm_bench": None}))
    assert "me/other" not in hub.repositories
