"""Kills every stage at random and at chosen moments, repeats the same command, and compares the final result byte for byte,
except for times, with that of an undisturbed run.

Launch: python benchmarks/kill.py [--kills 200] [--seed 0] [--stages pretrain,sft,...] [--json FILE]
Each stage runs with tiny models in a process forked from this one, which has imported the libraries once. A moment is either
a fraction of the undisturbed run's time, or the n-th time that the run opens, renames or removes a file (which covers
writing of checkpoints, manifests and cards, and the end of the run), of push: sends a request or receives its answer.
Signals: KILL, TERM, INT; stages that train also run with two processes. The pipeline is killed as a whole chain; merge,
health, compare and push (to the tests' stand-in for a hub) as commands on its stages. Prints the numbers of kills, finished
and byte-equal runs.
"""

import atexit
import gc
import json
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import httpx2  # the client that huggingface_hub uses

from llmrecipes.options import OptionParser, names_of, result_file

ROOT = Path(__file__).parent.parent
REAL_POPEN = subprocess.Popen
TRAINING = ["pretrain", "sft", "reward", "dpo", "ppo", "kto", "grpo"]
STAGES = ["tokenizer", "pretrain", "sft", "sample", "rank", "reward", "dpo", "ppo", "evaluate", "kto", "grpo"]
VARIANT = "sft-lora"  # a second run of SFT, for merge and compare
COMMANDS = {  # name: (the stages that it reads, its options)
    "merge": ([VARIANT], "--model_name_or_path {0}/sft-lora --output_dir {0}/merge"),
    "health": (
        ["reward"],
        "--model_name_or_path {0}/reward --output_dir {0}/health --health_min_accuracy null "
        "--health_min_group_accuracy null --health_max_calibration_error null --health_max_length_bias null "
        "--health_max_length_correlation null",
    ),
    "compare": (["sft", VARIANT], "{0}/sft {0}/sft-lora --output_dir {0}/compare"),
    "push": (["sft"], "--path {0}/sft --namespace me"),
}
REPOSITORY = "me/chain-sft"
# A constant learning rate, so that an extra step changes the weights. No interval is a multiple of another.
UNWATCHED = [
    "--max_steps",
    "9",
    "--save_steps",
    "2",
    "--logging_steps",
    "3",
    "--save_total_limit",
    "2",
    "--lr_scheduler_type",
    "constant",
    "--learning_rate",
    "1e-3",
    "--per_device_eval_batch_size",
    "64",
]
STEPS = [*UNWATCHED, "--watch_steps", "4"]
EVALUATES = ["--eval_strategy", "steps", "--eval_steps", "4"]
MODEL = (
    "{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, "
    "intermediate_size: 64, max_position_embeddings: 128, tie_word_embeddings: true, attention_dropout: 0.1}"
)
OPTIONS = {
    "pretrain": [*STEPS, *EVALUATES, "--model_config", MODEL],
    "sft": [*STEPS, *EVALUATES],
    "reward": [*UNWATCHED, *EVALUATES],
    "dpo": [*STEPS, *EVALUATES],
    "ppo": [*STEPS, "--kl_target", "0.1"],
    "kto": [*UNWATCHED, *EVALUATES],
    "grpo": UNWATCHED,
    "sample": ["--per_device_batch_size", "8"],
    VARIANT: "--use_peft --lora_r 2 --lora_target_modules q_proj --learning_rate 1e-2".split(),
}
EVENTS_OF_STAGES = 60  # file events per stage; every stage of a pipeline has some
TIMES = re.compile(
    r'"(?:started|wall_seconds|previous_seconds|seconds|step_time|[\w/]*runtime|[\w/]*_per_second|time/\w+)": [-+.\deE]+,?'
    r'|"peak_memory_gib": [\d.]+,?|Measured: [\d.]+ GiB|\d+ s on \d+|commit [\w-]+|"(?:commit|code)": "[\w-]+",'
)


def main():
    parser = OptionParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    known = [*STAGES, *(f"{s}:2" for s in TRAINING), *COMMANDS, "pipeline"]
    parser.add_argument("--stages", default=",".join(known))
    parser.add_argument("--json", type=result_file)
    args = parser.parse_args()
    try:
        names = names_of(args.stages, known)
    except ValueError as error:
        parser.error(f"--stages: {error}")
    if args.kills < 1:
        parser.error("--kills must be at least 1")
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory(prefix="kill-") as work:
        bench = Bench(Path(work) / "chain")
        rows = run(bench, names, args.kills, args.seed)
    total = {key: sum(row[key] for row in rows) for key in ("trials", "kills", "finished", "equal")}
    print(
        f"seed {args.seed}: {total['kills']} kills in {total['trials']} runs, {total['finished']} finished, "
        f"{total['equal']} byte-equal"
    )
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "rows": rows, "total": total}, indent=2) + "\n")
    sys.exit(total["equal"] != total["trials"])


def run(bench: "Bench", names: list[str], kills: int, seed: int) -> list[dict]:
    """Distributes `kills` over the stages `names` ("sft", "sft:2" for two processes, "pipeline"); returns a row for each."""
    rows = []
    for place, name in enumerate(names):
        stage, _, processes = name.partition(":")
        reference = bench.undisturbed(stage, int(processes or 1))
        row = {"stage": name, "trials": 0, "kills": 0, "finished": 0, "equal": 0, "failures": []}
        for trial in range(place, kills, len(names)):
            moments = random.Random(f"{seed} {name} {trial}")
            done, finished, differs = bench.disturbed(stage, int(processes or 1), reference, moments)
            row["trials"] += 1
            row["kills"] += done
            row["finished"] += finished
            row["equal"] += finished and not differs
            if not finished or differs:
                row["failures"].append(f"{seed} {name} {trial}: {differs or 'not finished'}")
                print("  ", row["failures"][-1], flush=True)
        rows.append(row)
        print(
            f"{name:<12}{row['trials']:>4} runs{row['kills']:>5} kills{row['finished']:>5} finished"
            f"{row['equal']:>5} byte-equal",
            flush=True,
        )
    return rows


class Bench:
    """Runs stages of the smoke chain below `home` in forked processes; needs 300 MB of disk at most."""

    def __init__(self, home: Path):
        self.home, self.kept, self.log = home, home.parent / "kept", home.parent / "log"
        self.kept.mkdir()
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ["HF_DATASETS_CACHE"] = str(home.parent / "cache")
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        import_libraries()
        from push_hub import Hub

        self.hub = Hub()
        threading.Thread(target=self.hub.serve_forever, args=(0.01,), daemon=True).start()

    def before(self, stage: str) -> list[str]:
        """The stages whose results `stage` reads."""
        if stage in COMMANDS or stage == "pipeline":
            return COMMANDS.get(stage, ([],))[0]
        return STAGES[: STAGES.index(stage.partition("-")[0])]

    def clear(self, stage: str) -> None:
        """Removes the result of `stage`. For push, the hub holds another run under the name and the tag of this one."""
        from llmrecipes.cards.evaluations import RESULTS_FILE

        shutil.rmtree(self.folder(stage), ignore_errors=True)
        if stage == "evaluate":
            for file in self.home.glob(f"*/{RESULTS_FILE}"):
                file.unlink()
        if stage == "push":
            tag = "run-" + json.loads((self.home / "sft" / "manifest.json").read_text())["fingerprint"]
            files = {"manifest.json": (b"{}", False), "old.safetensors": (b"old", True)}
            self.hub.objects.clear()
            self.hub.tags[REPOSITORY, tag] = self.hub.commit(REPOSITORY, files)
            self.hub.private[REPOSITORY] = True

    def result(self, stage: str) -> dict[str, str]:
        """Name -> digest of every file of the result; of push, in the tagged commits; of evaluate, its models' too, whose
        cards it writes."""
        if stage == "push":
            import xxhash

            held = [(f"{key} {tag}", self.hub.commits[commit]) for (key, tag), commit in self.hub.tags.items()]
            held += [(key, files) for key, files in self.hub.repos.items()]
            return {f"{of} {n}": xxhash.xxh3_128_hexdigest(data) for of, files in held for n, (data, _) in files.items()}
        folders = [self.folder(stage)]
        if stage == "evaluate":
            folders += [self.home / name for name in ("pretrain", "sft", "dpo", "ppo")]
        return {f"{folder.name}/{name}": digest for folder in folders for name, digest in read_files(folder).items()}

    def undisturbed(self, stage: str, processes: int) -> dict:
        """Files of an undisturbed run, its seconds and its number of file events; first makes the run's inputs."""
        kept = self.kept / f"{stage}-{processes}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        for before in self.before(stage):
            if not (self.home / before / "manifest.json").exists():
                self.undisturbed(before, 1)
        self.clear(stage)
        started = time.time()
        codes = self.wait(self.start(stage, processes, counts=True))
        if any(codes):
            sys.exit(f"{stage} with {processes} processes ends with {codes}:\n{self.log.read_text()[-3000:]}")
        events = int((self.home.parent / "events").read_text())
        found = {"seconds": time.time() - started, "events": EVENTS_OF_STAGES if stage == "pipeline" else events}
        found["files"] = self.result(stage)
        kept.write_text(json.dumps(found))
        return found

    def disturbed(self, stage: str, processes: int, reference: dict, moments: random.Random) -> tuple[int, bool, str]:
        """(kills, whether it finished, which file differs) for a run killed one to three times."""
        self.clear(stage)
        kills = 0
        for _ in range(moments.randint(1, 3)):
            signum = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            at_event = moments.randint(1, reference["events"]) if moments.random() < 0.6 else 0
            seconds = moments.random() * reference["seconds"]
            pids = self.start(stage, processes, at_event=at_event, signum=signum)
            codes = self.wait(pids, None if at_event else seconds, signum)
            if not any(codes):
                break
            kills += 1
            self.wait_for_orphans(stage)
        self.wait_for_orphans(stage)
        codes = self.wait(self.start(stage, processes))
        if any(codes):
            return kills, False, f"ends with {codes}: {self.log.read_text()[-1500:]}"
        files = self.result(stage)
        names = sorted(name for name in {*files, *reference["files"]} if files.get(name) != reference["files"].get(name))
        return kills, True, ", ".join(names)

    def wait_for_orphans(self, stage: str) -> None:
        """The kernel signals a stage whose pipeline was killed; it holds its folder's lock until it has saved and exited."""
        from llmrecipes.locks import find_holder

        deadline = time.time() + 60
        while time.time() < deadline and any(map(find_holder, self.folder(stage).glob("*/"))):
            time.sleep(0.05)

    def folder(self, stage: str) -> Path:
        return self.home if stage == "pipeline" else self.home / stage

    def start(self, stage: str, processes: int, counts=False, at_event=0, signum=0) -> list[int]:
        argv = [str(ROOT / "recipes" / f"{stage.partition('-')[0]}.py"), *self.options(stage)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(processes):
            if pid := os.fork():
                pids.append(pid)
                continue
            if processes > 1:
                launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in launch.items()})
            self.child(argv, counts and rank == 0, at_event if rank == 0 else 0, signum)
        return pids

    def child(self, argv: list[str], counts: bool, at_event: int, signum: int):
        """Never returns."""
        atexit._clear()  # these handlers are the parent's
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if not counts else 0))
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(ROOT)
        events = watch_files(str(self.home), at_event, signum)
        note = (lambda: (self.home.parent / "events").write_text(str(events[0]))) if counts else lambda: None
        subprocess.Popen = ForkedStage  # the pipeline's stages are forked too
        if argv[0].endswith("push.py"):
            reach_hub(self.hub.url)
        run_and_leave(argv, note)

    def options(self, stage: str) -> list[str]:
        if stage == "pipeline":
            return ["--config", "configs/smoke/pipeline.yaml", "--output_dir", str(self.home)]
        if stage in COMMANDS:
            return COMMANDS[stage][1].format(self.home).split()
        base, config = stage.partition("-")[0], self.home.parent / f"{stage}.yaml"
        text = (ROOT / "configs" / "smoke" / f"{base}.yaml").read_text()
        config.write_text(
            re.sub(f"outputs/smoke/{base}$", f"outputs/smoke/{stage}", text, flags=re.M).replace(
                "outputs/smoke", str(self.home)
            )
        )
        return ["--config", str(config), *OPTIONS.get(stage, [])]

    def wait(self, pids: list[int], seconds: float | None = None, signum: int = 0) -> list[int]:
        """Exit codes. After `seconds` all processes get `signum`; if one fails, the others are stopped as by a launcher."""
        codes, started, ended = {}, time.time(), None
        while len(codes) < len(pids):
            for pid in set(pids) - set(codes):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            if seconds is not None and time.time() - started > seconds:
                seconds = None
                for pid in set(pids) - set(codes):
                    os.kill(pid, signum)
            if ended is None and any(codes.values()):
                ended = time.time()
                for pid in set(pids) - set(codes):
                    os.kill(pid, signal.SIGTERM)
            if ended and time.time() - ended > 20:
                for pid in set(pids) - set(codes):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        return [codes[pid] for pid in pids]


class ForkedStage:
    """The parts of subprocess.Popen that the pipeline uses, without the seconds of imports."""

    def __new__(cls, command, **kwargs):
        return super().__new__(cls) if command[0] == sys.executable else REAL_POPEN(command, **kwargs)

    def __init__(self, command, env, preexec_fn):
        self.pid = os.fork()
        if not self.pid:
            atexit._clear()
            os.environ.update(env)
            preexec_fn()
            run_and_leave(command[1:])

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)


def run_and_leave(argv: list[str], at_end=lambda: None):
    """Runs a recipe as its command line would, and ends the process with its exit code."""
    code, sys.argv = 1, argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if code == 0:
            at_end()
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # os._exit skips them
        os._exit(code)


def watch_files(below: str, at_event: int, signum: int) -> list[int]:
    """Counts this process's operations on files below a folder, and its requests and their answers; at the `at_event`-th it
    receives `signum`."""
    count, send = [0], httpx2.Client.send

    def note():
        count[0] += 1
        if count[0] == at_event:
            os.kill(os.getpid(), signum)

    def noted_send(*args, **kwargs):
        note()
        response = send(*args, **kwargs)
        note()
        return response

    def hook(event, args):
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree") or below not in str(args[0]):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wa+x")):
            return
        note()

    sys.addaudithook(hook)
    httpx2.Client.send = noted_send
    return count


def reach_hub(url: str) -> None:
    """Makes this process push to the hub at `url`."""
    from huggingface_hub import constants
    from push_hub import TOKEN

    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET, constants.ENDPOINT = False, True, url


def read_files(folder: Path) -> dict[str, str]:
    """Name -> contents without times, for every file except those of checkpoints."""
    import xxhash

    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "checkpoint-" in name or path.name.startswith("report."):
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            value = json.loads(data)
            value["files"] = {file: [entry[0], entry[2]] for file, entry in value["files"].items()}
            data = json.dumps(value).encode()
        if path.suffix in (".json", ".jsonl", ".md"):
            data = TIMES.sub("", data.decode()).encode()
        found[name] = xxhash.xxh3_128_hexdigest(data)
    return found


def import_libraries() -> None:
    """Imports what the recipes import while running, so that forked processes need not, and reads the project's code
    once."""

    import deepspeed  # noqa: F401
    import trl.trainer.grpo_trainer
    import trl.trainer.kto_trainer  # noqa: F401

    import llmrecipes.data.streams
    import llmrecipes.evaluation
    import llmrecipes.evaluation.watch
    import llmrecipes.parsing
    import llmrecipes.ppo.trainer
    import llmrecipes.provenance
    import llmrecipes.ranking.annotators
    import llmrecipes.reward_models.health
    import llmrecipes.reward_models.trainer
    import llmrecipes.run
    import llmrecipes.sft

    known = {}

    def code_digest(recipe, given, read=llmrecipes.provenance.code_digest):
        if recipe not in known:
            known[recipe] = read(recipe, given)
        return known[recipe]

    llmrecipes.provenance.code_digest = code_digest
    for stage in STAGES:
        code_digest(ROOT / "recipes" / f"{stage}.py", {})
    gc.collect()
    gc.freeze()  # keeps memory shared: a garbage collection in a forked process would copy it


if __name__ == "__main__":
    main()
