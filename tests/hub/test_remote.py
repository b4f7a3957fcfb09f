"""Published by the Hub's real client on a Hub on the loopback: whole or not at all, once, and never in silence."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from huggingface_hub import close_session, hf_hub_download, snapshot_download

from hpm_robustbench.errors import UploadFailed, UsageProblem
from hpm_robustbench.hub.remote import Destination, send

FILES = {
    "config.json": b"{}",
    "hpm_card.json": b'{"a": 1}',
    "model.safetensors": b"x" * 5000,
    "README.md": b"---\na: 1\n---\n",
}
HERE = Destination("me/model")


def commits(hub) -> list[str]:
    return hub.repositories["me/model"].messages


def test_all_files_arrive_in_one_commit_and_come_back(hub, tmp_path):
    done = send(FILES, HERE, "Publish a model")
    assert done.changed and done.commit == hub.repositories["me/model"].branches["main"]
    assert done.address == f"{hub.address}/me/model/commit/{done.commit}"
    assert {k: v for k, v in hub.head("me/model").items() if k != ".gitattributes"} == FILES
    assert commits(hub) == ["initial commit", "Publish a model"]
    folder = Path(snapshot_download("me/model", revision=done.commit, cache_dir=tmp_path / "elsewhere"))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_a_second_time_nothing_is_sent_and_one_changed_file_goes_alone(hub):
    first = send(FILES, HERE, "one")
    asked = len(hub.asked)
    assert send(FILES, HERE, "two") == (first.commit, f"{hub.address}/me/model/tree/{first.commit}", False)
    assert {a.method for a in hub.asked[asked:] if "/create" not in a.path} == {"GET"}
    assert send({**FILES, "README.md": b"---\nb: 2\n---\n"}, HERE, "three").changed
    assert commits(hub) == ["initial commit", "one", "three"]
    assert sum(a.method == "PUT" for a in hub.asked) == 1


OPTIONAL = {
    "SHA256SUMS": b"1",
    "SHA256SUMS.sig": b"2",
    ".eval_results/hpm-robustbench.yaml": b"- 3\n",
    "training.json": b"{}",
}


def test_what_an_earlier_push_added_goes_in_the_same_commit_and_other_peoples_files_stay(hub, loopback):
    send({**FILES, **OPTIONAL}, HERE, "one")
    theirs = {"LICENSE": b"mine", ".eval_results/other.yaml": b"- 4\n"}
    repository = hub.repositories["me/model"]
    held = repository.commits[repository.branches["main"]]
    repository.commit("main", held | {p: loopback.Blob(c, False) for p, c in theirs.items()}, "theirs")
    assert send(FILES, HERE, "two").changed
    assert hub.head("me/model").keys() == {".gitattributes", *FILES, *theirs}
    assert not send(FILES, HERE, "three").changed
    assert send({**FILES, "SHA256SUMS": b"1"}, HERE, "four").changed
    assert commits(hub) == ["initial commit", "one", "theirs", "two", "four"]


def test_a_proposal_takes_away_only_where_it_is_made(hub):
    send({**FILES, **OPTIONAL}, HERE, "one")
    send(FILES, Destination("me/model", create_pr=True), "two")
    assert hub.head("me/model").keys() == {".gitattributes", *FILES, *OPTIONAL}
    assert hub.head("me/model", "refs/pr/1").keys() == {".gitattributes", *FILES}


def test_sums_in_a_repository_without_a_card_are_somebody_elses(hub):
    send(OPTIONAL, HERE, "theirs")
    send(FILES, HERE, "ours")
    assert hub.head("me/model").keys() == {".gitattributes", *FILES, *OPTIONAL}


def test_a_branch_a_proposal_and_a_private_repository(hub):
    main = send(FILES, HERE, "one")
    other = send({**FILES, "config.json": b"[]"}, Destination("me/model", "next"), "two")
    repository = hub.repositories["me/model"]
    assert (repository.branches["main"], repository.branches["next"]) == (main.commit, other.commit)
    proposed = send({**FILES, "config.json": b"[1]"}, Destination("me/model", create_pr=True), "three")
    assert proposed.address.endswith("/discussions/2")
    assert repository.branches["main"] == main.commit
    send(FILES, Destination("lab/secret", private=True), "one")
    assert hub.repositories["lab/secret"].private
    assert not repository.private


def test_what_is_to_be_private_is_not_sent_where_all_can_see_it(hub):
    send(FILES, HERE, "one")
    with pytest.raises(UsageProblem, match="one that everybody sees; nothing was sent"):
        send({**FILES, "config.json": b"[]"}, Destination("me/model", private=True), "two")
    assert commits(hub) == ["initial commit", "one"]


def test_another_models_repository_is_left_alone(hub, loopback):
    send({"config.json": b"{}"}, HERE, "theirs")
    with pytest.raises(UsageProblem, match=r"another model's config\.json"):
        send(FILES, HERE, "ours")
    assert commits(hub) == ["initial commit", "theirs"]


@pytest.mark.parametrize(
    ("repo", "revision"),
    [("model", "main"), ("../x/y", "main"), ("me/mo--del", "main"), ("me/model", "a b"), ("a/b/c", "main")],
)
def test_a_destination_that_is_none_is_refused_at_once(repo, revision):
    with pytest.raises(UsageProblem, match=f"written as owner/name; got '{repo}' at the revision '{revision}'"):
        Destination(repo, revision)


def test_a_proposal_for_another_branch_is_refused():
    with pytest.raises(UsageProblem, match="--create-pr with --revision next"):
        Destination("me/model", "next", create_pr=True)


@pytest.mark.parametrize(
    ("token", "repo", "got"),
    [
        (None, "me/model", "no token"),
        ("hf_reader", "me/model", "may not write there"),
        ("hf_unknown", "me/model", "not accepted"),
        ("hf_CANARY" + "z" * 25, "other/model", "may not write there"),
    ],
)
def test_who_may_not_write_is_told_so(token, repo, got, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UploadFailed, match=got) as caught:
        send(FILES, Destination(repo), "one")
    assert caught.value.exit_code == 3
    assert hub.repositories == {}
    assert (len(hub.asked) > 0) is (token is not None)


@pytest.mark.parametrize(
    ("fault", "got"),
    [
        (("POST .*/commit/", 409), "a conflict"),
        (("POST .*/commit/", 412), "somebody else made meanwhile"),
        (("POST .*/commit/", 413), "too large"),
        (("POST .*/commit/", 500), "500"),
        (("POST .*/commit/", 0), "check the connection"),
        (("GET .*/tree/", 404), "no such repository"),
        (("POST .*/preupload/", 403), "may not write there"),
        (("PUT /storage/", 400), "repeat the command"),
        (("PUT /storage/", 0), "repeat the command"),
        (("POST .*objects/batch", 503), "503"),
        (("POST /api/validate-yaml", 500), "repeat the command"),
    ],
)
def test_a_failure_says_what_happened_shows_nothing_and_is_made_good_by_repeating(fault, got, hub, loopback):
    match, status = fault
    hub.faults = [loopback.Fault(match, status, times=99)]
    with pytest.raises(UploadFailed, match=got):
        send(FILES, HERE, "one")
    assert set(hub.head("me/model")) == {".gitattributes"}
    hub.faults = []
    send(FILES, HERE, "one")
    assert set(hub.head("me/model")) == {".gitattributes", *FILES}


def test_too_many_requests_say_how_long_to_wait(hub, loopback):
    hub.faults = [loopback.Fault("POST .*/preupload/", 429, times=99, headers={"Retry-After": "17"})]
    with pytest.raises(UploadFailed, match="too many requests, to be made again in 17 s"):
        send(FILES, HERE, "one")


@pytest.mark.parametrize("told", [{"Retry-After": "17"}, {"RateLimit": '"api";r=0;t=17', "RateLimit-Policy": "x"}])
@pytest.mark.parametrize("request_of", ["repos/create", "/tree/", "/preupload/", "objects/batch", "/commit/"])
def test_a_pause_that_the_hub_asks_for_is_made(told, request_of, hub, loopback, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    hub.faults = [loopback.Fault(request_of, 429, headers=told)]
    assert send(FILES, HERE, "one").changed
    assert pauses == [18]


def test_a_pause_that_is_too_long_is_only_told(hub, loopback, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    hub.faults = [loopback.Fault("POST .*/commit/", 429, headers={"Retry-After": "3600"})]
    with pytest.raises(UploadFailed, match="to be made again in 3600 s"):
        send(FILES, HERE, "one")


@pytest.mark.parametrize("request_of", ["repos/create", "/revision/", "/preupload/", "PUT /storage/", "/commit/"])
def test_a_hub_that_has_gone_silent_is_given_up(request_of, hub, loopback, monkeypatch):
    for module in ("hub.remote", "weights.patience"):
        monkeypatch.setattr(f"hpm_robustbench.{module}.SILENCE", 0.2)
    close_session()  # so that the next one is as patient as is said above
    hub.faults = [loopback.Fault(request_of, delay=60.0, status=0, times=99)]
    with pytest.raises(UploadFailed, match=r"ReadTimeout.*check the connection, and repeat the command") as caught:
        send(FILES, HERE, "one")
    assert caught.value.exit_code == 3
    close_session()


def test_a_busy_hub_is_asked_again(hub, loopback):
    hub.faults = [loopback.Fault("POST .*objects/batch", 503, times=2), loopback.Fault("PUT", 500, times=1)]
    assert send(FILES, HERE, "one").changed


def test_what_was_sent_is_not_sent_again_after_a_break(hub, loopback):
    hub.faults = [loopback.Fault("POST .*/commit/", 0)]
    with pytest.raises(UploadFailed):
        send(FILES, HERE, "one")
    send(FILES, HERE, "one")
    assert sum(a.method == "PUT" for a in hub.asked) == 1


def test_a_commit_whose_answer_was_lost_is_found_done(hub, loopback):
    hub.faults = [loopback.Fault("POST .*/commit/", after=True)]
    with pytest.raises(UploadFailed):
        send(FILES, HERE, "one")
    assert not send(FILES, HERE, "one").changed
    assert commits(hub) == ["initial commit", "one"]


def test_two_at_once_leave_one_whole_state(hub, loopback):
    send(FILES, HERE, "zero")
    hub.faults = [loopback.Fault("POST .*/preupload/", delay=0.0, times=0)]
    states = [{**FILES, "config.json": bytes([i]) * 9, "model.safetensors": bytes([i]) * 5000} for i in (1, 2)]
    met, outcomes = threading.Barrier(2), []

    def one(files: dict[str, bytes]) -> None:
        met.wait()
        try:
            outcomes.append(send(files, HERE, "at once").changed)
        except UploadFailed as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one, args=(files,)) for files in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = {k: v for k, v in hub.head("me/model").items() if k != ".gitattributes"}
    assert held in states
    assert True in outcomes
    assert all(o is True or "somebody else made meanwhile" in o for o in outcomes)


def test_offline_nothing_is_asked(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UploadFailed, match=r"offline mode.*HF_HUB_OFFLINE"):
        send(FILES, HERE, "one")
    assert hub.asked == []


def test_the_stand_in_speaks_as_documented(hub):
    """The fields that the Hub's API and git-lfs document, and that clients of other makes would look for."""
    from huggingface_hub import HfApi

    commit = send(FILES, HERE, "one").commit
    api = HfApi()
    assert api.whoami()["name"] == "lab"
    info = api.model_info("me/model")
    assert (info.id, info.sha, info.private) == ("me/model", commit, False)
    assert [ref.target_commit for ref in api.list_repo_refs("me/model").branches] == [commit]
    assert api.file_exists("me/model", "config.json") and not api.file_exists("me/model", "absent.json")
    [large] = [e for e in api.list_repo_tree("me/model") if e.lfs]
    assert (large.path, large.lfs.size, large.size) == ("model.safetensors", 5000, 5000)
    assert hf_hub_download("me/model", "config.json").endswith(f"{commit}/config.json")


def test_a_hub_without_xet_is_told_apart_and_models_come_from_it_all_the_same(hub, monkeypatch, tmp_path):
    """The client's newer storage, on by default: this Hub has none, as many a Hub of one's own."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(UploadFailed, match="HF_HUB_DISABLE_XET=1"):
        send(FILES, HERE, "one")
    assert set(hub.head("me/model")) == {".gitattributes"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    send(FILES, HERE, "one")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert Path(hf_hub_download("me/model", "model.safetensors")).read_bytes() == FILES["model.safetensors"]
