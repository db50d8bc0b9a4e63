"""vLLM's routes beside OpenAI's, as its controllers and lm-eval send them, and bodies without a Content-Type."""

import json
import shutil
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from graft.hub.registry.registry import Registry
from graft.server.engine.inventory import Inventory
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, serving

BASE = "test/llama"


@pytest.fixture(scope="module")
def base():
    made = tiny_base("llama")
    made.tokenizer.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def root(base, tmp_path_factory):
    """Folders that clients may name: two adapters, what is none, a link that leads out of it."""
    top = tmp_path_factory.mktemp("root")
    outside = write_folder(tmp_path_factory.mktemp("outside") / "lora", "lora", base, 7)
    for seed, kind in enumerate(("lora", "ia3")):
        write_folder(top / kind, kind, base, seed)
    (top / "empty").mkdir()
    broken = write_folder(top / "broken", "lora", base, 1)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    (top / "link").symlink_to(outside)
    (top / "circle").symlink_to(top / "circle")
    return top


@pytest.fixture(scope="module")
def live(base, root, tmp_path_factory):
    top = tmp_path_factory.mktemp("own")
    registry = Registry(top / "registry.db")
    registry.add_base(base.spec)
    registry.publish(write_folder(top / "published", "bitfit", base, 5), "me/topics", tags=["v1"])
    own = write_folder(top / "own", "prefix", base, 3)
    (own / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    with serving(base, {"own": own}, shelf=registry, adapter_root=root) as running:
        yield running


def text_of(live, model: str) -> str:
    asked = {"model": model, "prompt": "The quick", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    reply = live.post("/v1/completions", asked)
    assert reply.status == 200, reply.data
    return reply.json["choices"][0]["text"]


def load(live, name, path, **more):
    return live.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **more})


def unload(live, name):
    return live.post("/v1/unload_lora_adapter", {"lora_name": name, "lora_int_id": 1})


# Token ids


def test_token_ids_are_those_of_the_prompt(live, base):
    found = live.post("/tokenize", {"model": BASE, "prompt": "Hi ü", "return_token_strs": True}).json
    assert found["tokens"] == base.tokenizer.encode("Hi ü") and found["count"] == len(found["tokens"]) == 5
    assert found["max_model_len"] == 256 and "".join(found["token_strs"]) == "HiĠÃ¼"
    plain = live.post("/tokenize", {"prompt": "Hi ü", "add_special_tokens": False, "unknown": 1}).json
    assert plain["tokens"] == found["tokens"] and plain["token_strs"] is None  # this tokenizer puts nothing in front
    assert live.post("/tokenize", {"prompt": ""}).json["count"] == 0
    text = live.post("/detokenize", {"model": BASE, "tokens": [0, *found["tokens"], 1]}).json
    assert text == {"prompt": "<s>Hi ü</s>"}
    assert live.post("/detokenize", {"tokens": []}).json == {"prompt": ""}


def test_fields_that_nobody_knows_are_named(live, root):
    messages = [{"role": "user", "content": "Hello"}]
    for path, body in (
        ("/tokenize", {"prompt": "Hi"}),
        ("/tokenize", {"messages": messages}),
        ("/detokenize", {"tokens": [5]}),
        ("/v1/load_lora_adapter", {"lora_name": "named", "lora_path": str(root / "lora")}),
        ("/v1/unload_lora_adapter", {"lora_name": "named"}),
    ):
        reply = live.post(path, body | {"lora_int_id": 1, "colour": "red", "x": None})
        assert reply.status == 200 and reply.headers["X-Ignored-Fields"] == "colour, lora_int_id", reply.data


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {"prompt": "Hi", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
        ("/tokenize", {"prompt": "Hi", "suffix": "x"}, "suffix"),
        ("/tokenize", {"prompt": "Hi", "add_special_token": False}, "add_special_token"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "documents": [{"text": "a"}]}, "documents"),
        ("/detokenize", {"tokens": [5], "skip_special_tokens": True}, "skip_special_tokens"),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b", "load_in_place": True}, "load_in_place"),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(live, path, body, field):
    reply = live.post(path, body)
    assert reply.status == 400 and reply.error["param"] == field and field in reply.error["message"]


@pytest.mark.parametrize("model", [BASE, "own"])
def test_ids_of_a_chat_go_through_the_models_own_template(live, base, model):
    messages = [{"role": "user", "content": "Hello"}]
    found = live.post("/tokenize", {"model": model, "messages": messages}).json
    text = "<Hello>" if model == "own" else "[user]Hello[a]"
    assert found["tokens"] == base.tokenizer.encode(text)
    asked = {"model": model, "messages": messages, "max_tokens": 1}
    assert live.post("/v1/chat/completions", asked).json["usage"]["prompt_tokens"] == found["count"]
    open_ended = live.post("/tokenize", {"model": BASE, "messages": messages, "add_generation_prompt": False}).json
    assert open_ended["tokens"] == base.tokenizer.encode("[user]Hello")
    own = live.post("/tokenize", {"model": model, "messages": messages, "chat_template": "{{ 1 + 1 }}"}).json
    assert own["tokens"] == base.tokenizer.encode("2")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", [1], None),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"model": "nobody", "prompt": "a"}, "model"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "1"}, "tokens"),
        ("/detokenize", {"model": "nobody", "tokens": [1]}, "model"),
    ],
)
def test_what_can_not_be_tokenised_is_named(live, path, body, param):
    reply = live.post(path, body)
    assert reply.status in (400, 404) and reply.error["param"] == param


def test_what_a_client_needs_to_make_prompts_itself(live):
    """lm-eval asks for these four."""
    found = live.get("/tokenizer_info").json
    assert [found[f"{name}_token"] for name in ("bos", "eos", "pad")] == ["<s>", "</s>", "</s>"]
    assert found["chat_template"] == CHAT_TEMPLATE and found["model_max_length"] == 256


def test_the_version(live):
    assert live.get("/version").json == {"version": "0.1.0"}


# Adapters by name


def test_a_folder_gets_a_name_and_loses_it(live, root):
    plain = text_of(live, BASE)
    reply = load(live, "tenant-1", root / "lora", lora_int_id=1)
    assert reply.status == 200 and reply.data == b"Success: LoRA adapter 'tenant-1' added successfully."
    text = text_of(live, "tenant-1")
    assert text != plain
    listed = {model["id"]: model for model in live.get("/v1/models").json["data"]}
    assert listed["tenant-1"]["state"] == "device" and listed["tenant-1"]["parent"] == BASE
    again = load(live, "tenant-1", root / "ia3")
    assert again.status == 400 and "has already been loaded" in again.error["message"]
    assert text_of(live, "tenant-1") == text
    assert load(live, "tenant-1", root / "ia3", load_inplace=True).status == 200
    assert text_of(live, "tenant-1") not in (text, plain)
    failed = load(live, "tenant-1", root / "broken", load_inplace=True)
    assert 400 <= failed.status < 500 and text_of(live, "tenant-1") not in (text, plain)
    gone = unload(live, "tenant-1")
    assert gone.status == 200 and gone.data == b"Success: LoRA adapter 'tenant-1' removed successfully."
    error = unload(live, "tenant-1")
    assert error.status == 404 and "cannot be found" in error.error["message"]
    asked = live.post("/v1/completions", {"model": "tenant-1", "prompt": "a"})
    assert asked.status == 404 and asked.error["code"] == "model_not_found"
    assert "tenant-1" not in {model["id"] for model in live.get("/v1/models").json["data"]}
    assert live.idle()


def test_a_name_in_the_registry_is_loaded_by_another(live):
    text = text_of(live, "me/topics@v1")
    for name in ("alias", "with/slash"):
        assert load(live, name, "me/topics@v1").status == 200 and text_of(live, name) == text
        assert live.post("/v1/completions", {"model": name, "prompt": "a"}).headers["X-Adapter-Revision"]
        assert name in {model["id"] for model in live.get("/v1/models").json["data"]}
        assert unload(live, name).status == 200
    assert load(live, "me/topics", "me/topics").status == 200  # as controllers do that know one name only
    assert load(live, "me/topics", "me/topics").status == 400
    assert unload(live, "me/topics").status == 200 and text_of(live, "me/topics") == text
    assert live.idle()


@pytest.mark.parametrize(
    ("name", "path", "status", "words"),
    [
        ("x", "empty", 404, "No adapter found"),
        ("x", "nowhere", 404, "No adapter found"),
        ("x", "circle", 404, "lead nowhere"),
        ("x", "a" * 300, 404, "No adapter found"),
        ("x", "link", 400, "outside"),
        ("x", "..", 400, "outside"),
        ("x", "lora/../../..", 400, "outside"),
        ("own", "lora", 400, "from its start"),
        ("me/topics", "lora", 400, "from its start"),
        (BASE, "lora", 400, "base's name"),
        ("", "lora", 400, "lora_name"),
        ("a\nb", "lora", 400, "lora_name"),
        ("x" * 300, "lora", 400, "lora_name"),
    ],
)
def test_what_can_not_be_loaded_is_told(live, root, name, path, status, words):
    reply = load(live, name, f"{root}/{path}")
    assert reply.status == status and words in reply.error["message"]
    names = {model["id"] for model in live.get("/v1/models").json["data"]}
    assert (name in names) == (name in ("own", "me/topics", BASE))


def test_names_that_stand_for_nothing_and_broken_folders(live, root):
    for target in ("nobody/nothing", "me/topics@v9", "relative", "\x00"):
        reply = load(live, "x", target)
        assert reply.status in (400, 404) and reply.error["param"] == "lora_path"
    assert load(live, "x", root / "broken").status in (400, 422)
    assert live.post("/v1/completions", {"model": "x", "prompt": "a"}).status == 404
    assert live.post("/v1/load_lora_adapter", {"lora_name": "x"}).error["param"] == "lora_path"


def test_a_name_is_given_by_one_at_a_time(live, root, monkeypatch):
    """While a load is under way nobody else gives or takes its name, so that its failure undoes what it did and nothing else."""
    inside, go = threading.Event(), threading.Event()
    load_it = Inventory.load

    def slowly(self, name, client, weight, patience):
        inside.set()
        assert go.wait(20)
        return load_it(self, name, client, weight, patience)

    assert load(live, "shared", root / "lora").status == 200
    text = text_of(live, "shared")
    with monkeypatch.context() as patched:
        patched.setattr(Inventory, "load", slowly)
        failing = threading.Thread(target=load, args=(live, "shared", root / "broken"), kwargs={"load_inplace": True})
        failing.start()
        assert inside.wait(20)
        assert "just being loaded" in load(live, "shared", root / "ia3", load_inplace=True).error["message"]
        taken = unload(live, "shared")
        assert text_of(live, "shared") == text  # until the other is proven
        assert taken.status == 409 and "just being loaded" in taken.error["message"]
        go.set()
        failing.join(20)
    assert text_of(live, "shared") == text
    assert load(live, "shared", root / "ia3", load_inplace=True).status == 200 and text_of(live, "shared") != text
    assert unload(live, "shared").status == 200 and live.idle()


def test_without_a_root_no_folder_is_read(base, root):
    with serving(base, {}) as other:
        error = load(other, "x", root / "lora")
        assert error.status == 400 and "--adapter-root" in error.error["message"]


def test_a_folder_that_goes_takes_nobody_with_it(live, root, base, tmp_path):
    folder = write_folder(root / "passing", "lora", base, 9)
    assert load(live, "passing", folder).status == 200
    shutil.rmtree(folder)
    assert live.get("/v1/models").status == 200 and live.get("/v1/adapters").status == 200
    assert unload(live, "passing").status == 200


def leads_in_a_circle(path, monkeypatch):
    path.unlink()
    path.symlink_to(path)


def may_not_be_looked_at(path, monkeypatch):
    def forbidden(self):
        if self == path.parent:
            raise PermissionError(13, "Permission denied")
        return look(self)

    look = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", forbidden)


@pytest.mark.parametrize(("happens", "status"), [(leads_in_a_circle, 422), (may_not_be_looked_at, 404)])
def test_a_folder_that_can_not_be_followed_any_more_takes_nobody_with_it(
    live, root, base, monkeypatch, happens, status
):
    folder = write_folder(root / happens.__name__, "lora", base, 9)
    assert load(live, "odd", folder).status == 200
    happens(folder / "adapter_model.safetensors", monkeypatch)
    for path in ("/v1/models", "/v1/adapters"):
        listed = {one["id"]: one.get("error") for one in live.get(path).json["data"]}
        assert listed["odd"] and not listed["own"]
    assert live.post("/v1/completions", {"model": "odd", "prompt": "a", "max_tokens": 1}).status == status
    assert unload(live, "odd").status == 200
    assert load(live, "odd", folder).status == status and live.idle()


# Bodies without a Content-Type


def test_json_without_a_content_type_is_taken_but_from_pages(live):
    def status(**headers) -> int:
        connection = HTTPConnection("127.0.0.1", live.port)
        data = json.dumps({"model": BASE, "prompt": "a", "max_tokens": 1})
        connection.request(
            "POST", "/v1/completions", data, {name.replace("_", "-"): to for name, to in headers.items()}
        )
        with closing(connection):
            return connection.getresponse().status

    assert status() == 200
    assert status(Origin="https://a.example") == 415
    assert status(Content_Type="text/plain") == 415
    assert status(Content_Type="application/json; charset=utf-8") == 200
