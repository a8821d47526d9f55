"""The launchers: dry runs, restarts for real, manifests by their schemas.

gcloud, srun, scontrol and kubectl are stand-ins that note how they are called.
"""

import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.rglob('*.sh'), *LAUNCH.glob('*.sbatch')])

RUN = {'CONFIG': 'configs/digits.py', 'WORKDIR': '/runs/a b'}
SLICE = {'NAME': 'pod', 'PROJECT': 'proj', 'ZONE': 'us-west4-a'}
TYPE = {'ACCELERATOR': 'v5litepod-64', 'RUNTIME': 'v2-alpha-tpuv5-lite'}
GKE = {'NAME': 'fractal', 'IMAGE': 'host/repo/fractal:1', **RUN}
TPU = {'TPU_ACCELERATOR': 'tpu-v5-lite-podslice', 'TPU_TOPOLOGY': '8x8'}
GPU = {'GPU_ACCELERATOR': 'nvidia-h100-80gb', 'HOSTS': '4'}

# Each launcher's arguments, and the variables that it can't do without.
NEEDS = {
  'cpu.sh': RUN,
  'gpu.sh': RUN,
  'slurm.sbatch': {**RUN, 'VENV': '/shared/venv', 'GPUS': '8'},
  'tpu_pod.sh create': {**SLICE, **TYPE},
  'tpu_pod.sh setup': SLICE,
  'tpu_pod.sh run': {**SLICE, **RUN},
  'tpu_pod.sh restart': {**SLICE, **TYPE, **RUN},
  'tpu_pod.sh logs': SLICE,
  'tpu_pod.sh stop': SLICE,
  'tpu_pod.sh status': SLICE,
  'tpu_pod.sh delete': SLICE,
  'gke/gke.sh tpu': {**GKE, **TPU},
  'gke/gke.sh gpu': {**GKE, **GPU},
}

TRAIN = "--config=configs/digits.py '--workdir=/runs/a b'"


def executable(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def machine(tmp_path):
  """A machine whose tools note their calls, and end as they are told to."""
  return Machine(tmp_path)


class Machine:
  def __init__(self, path: pathlib.Path):
    self.path = path
    self.calls_file = path / 'calls'
    self.venv = path / 'venv'
    for tool in ('gcloud', 'kubectl', 'srun', 'scontrol'):
      self.tool(path / 'bin' / tool)
    for tool in ('fractal-jax', 'python'):
      self.tool(self.venv / 'bin' / tool)
    # launch/setup.sh takes this for an environment that it has made.
    (self.venv / 'bin' / 'activate').write_text(f'PATH={self.venv}/bin:$PATH')
    for extras in ('', '[cuda]', '[tpu]', '[cuda,gcs,tfds]'):
      (self.venv / f'.installed{extras}').touch()

  def tool(self, path: pathlib.Path, then: str = '') -> None:
    note = f'echo "${{0##*/}} ${{*@Q}}" >> {self.calls_file}'
    executable(path, f'{note}\n{then}')

  def ends(self, name: str, *how: str) -> None:
    """The n-th call of a tool does the n-th of these."""
    cases = '\n'.join(f'{i}) {x} ;;' for i, x in enumerate(how, 1))
    there = self.venv / 'bin' if name == 'fractal-jax' else self.path / 'bin'
    count = f'$(grep -c "^{name} " {self.calls_file})'
    self.tool(there / name, f'case {count} in\n{cases}\nesac')

  def environment(self, env: dict[str, str]) -> dict[str, str]:
    return {
      'PATH': f'{self.path}/bin:/usr/bin:/bin',
      'HOME': str(self.path),
      'PYTHON': sys.executable,
      'RESTART_PAUSE': '0',
      **env,
    }

  def launch(self, command: str, *args: str, **env: str):
    script, *job = command.split()
    return subprocess.run(
      [LAUNCH / script, *args, *job],
      env=self.environment(env),
      capture_output=True,
      text=True,
      timeout=30,
    )

  @property
  def calls(self) -> list[str]:
    if not self.calls_file.exists():
      return []
    return self.calls_file.read_text().splitlines()

  def count(self, tool: str) -> int:
    return sum(call.startswith(f'{tool} ') for call in self.calls)


def flags_of(call: str) -> dict[str, str]:
  """The flags of a call, by name."""
  return dict(x[2:].split('=', 1) for x in shlex.split(call)[2:])


@pytest.mark.parametrize(
  'name, env, config, dtype, step',
  [
    ('digits_mar', {}, 'configs/digits.py:mar', 'bfloat16', None),
    ('nab_ar', {'NAB': '/n b'}, 'configs/series.py', 'bfloat16', None),
    ('emoji_ar', {'EMOJI': '/emoji'}, 'configs/emoji.py:small', 'int8', '750'),
  ],
)
def test_a_release_is_of_the_run_that_is_measured(
  machine, name, env, config, dtype, step
):
  machine.tool(machine.venv / 'bin' / 'python', 'echo 750')  # the best step
  where = {'VENV': str(machine.venv), 'RUNS': '/runs', 'RELEASES': '/out'}
  done = machine.launch('release.sh', name, **where, **env)
  assert done.returncode == 0, done.stderr
  calls = [x for x in machine.calls if x.startswith('fractal-jax ')]
  train, *others = map(flags_of, calls)
  assert [shlex.split(x)[1] for x in calls] == [
    'train', 'likelihood', 'sample', 'convert',
  ]  # fmt: skip
  assert train['config'] == config and 'step' not in train
  assert all(x.get('step') == step for x in others)
  assert {x['workdir'] for x in [train, *others]} == {f'/runs/{name}'}
  likelihood, sample, convert = others
  assert convert['out'] == f'/out/{name}' and convert['dtype'] == dtype
  assert convert['numbers'] == likelihood['out']
  assert convert['samples'] == sample['out']
  assert convert['made_by'].endswith(f'launch/release.sh {name}')
  for name in env:
    assert f'{name}=' in convert['made_by']


def test_a_release_says_what_it_needs_before_it_begins(machine):
  for names, words in (
    (['digits_ar', 'emoji_ar'], 'set EMOJI to'),
    (['digits_ar', 'nab_ar'], 'set NAB to'),
    (['digits_ar', 'mnist'], "no model 'mnist': there are digits_ar"),
  ):
    done = machine.launch('release.sh', *names, VENV=str(machine.venv))
    assert done.returncode and words in done.stderr
  assert not machine.calls


def test_shellcheck():
  found = subprocess.run(
    [pathlib.Path(sys.executable).with_name('shellcheck'), '-x', *SCRIPTS],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert not found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda s: s.name)
def test_executable_if_it_is_a_command(script):
  sourced = script.name in ('common.sh', 'setup.sh')
  assert os.access(script, os.X_OK) != sourced


# Dry runs


@pytest.mark.parametrize('command', NEEDS)
def test_dry_run_prints_and_does_nothing(command, machine):
  done = machine.launch(command, '--dry-run', **NEEDS[command])
  assert not done.returncode, done.stderr
  assert done.stdout
  assert not machine.calls


@pytest.mark.parametrize(
  'command, name', [(c, name) for c, names in NEEDS.items() for name in names]
)
@pytest.mark.parametrize('flags', [[], ['--dry-run']], ids=['real', 'dry'])
def test_unset_variable_is_named_before_anything_runs(
  command, name, flags, machine
):
  env = {k: v for k, v in NEEDS[command].items() if k != name}
  done = machine.launch(command, *flags, **env)
  assert done.returncode == 2
  [line] = [x for x in done.stderr.splitlines() if 'not set' in x]
  assert f' {name} is not set: ' in line and f'export {name}=' in line
  assert not machine.calls and not done.stdout


def dry(machine, command: str, **env: str) -> str:
  done = machine.launch(command, '--dry-run', **(NEEDS[command] | env))
  assert not done.returncode, done.stderr
  return done.stdout


def test_dry_runs_of_one_machine(machine):
  for name, setting in (('cpu', 'cpu'), ('gpu', 'cuda')):
    lines = dry(machine, f'{name}.sh').splitlines()
    assert 'source launch/setup.sh' in lines
    assert f'export JAX_PLATFORMS={setting}' in lines
    assert f'fractal-jax train {TRAIN}' in lines


@pytest.mark.parametrize('given', ['tfds', '[tfds]', 'tfds,movie'])
def test_extras_pass_through(given, machine):
  """And what a bucket needs is added to them."""
  bucket = {'EXTRAS': given, 'WORKDIR': 'gs://bucket/run'}
  names = given.strip('[]')
  gpu = dry(machine, 'gpu.sh', **bucket)
  assert f"export 'EXTRAS=[cuda,gcs,{names}]'" in gpu
  assert f"export 'EXTRAS=[{names}]'" in dry(machine, 'cpu.sh', EXTRAS=given)
  pod = dry(machine, 'tpu_pod.sh restart', **bucket)
  [setup] = [x for x in pod.splitlines() if 'worker.sh setup' in x]
  command = shlex.split(setup)[-1].removeprefix('--command=').split(' && ')[-1]
  assert shlex.split(command) == [
    f'EXTRAS=[tpu,gcs,{names}]',
    'fractal_jax/launch/worker.sh',
    'setup',
  ]


def test_setup_installs_the_extras_that_are_asked_for(machine):
  env = {**RUN, 'VENV': str(machine.venv), 'EXTRAS': '[movie,tfds]'}
  assert not machine.launch('cpu.sh', **env).returncode
  [pip] = [call for call in machine.calls if " 'pip' " in call]
  assert shlex.split(pip)[-1] == '.[movie,tfds]'
  assert not machine.launch('cpu.sh', **env).returncode  # no second time
  assert len([call for call in machine.calls if " 'pip' " in call]) == 1


@pytest.mark.parametrize(
  'script',
  [
    'cpu.sh',
    'gpu.sh',
    'slurm.sbatch',
    'tpu_pod.sh',
    'gke/gke.sh',
    'quickstart.sh',
  ],
)
@pytest.mark.parametrize('flags', [['--help'], ['-h']])
def test_help_does_nothing(script, flags, machine):
  done = machine.launch(script, *flags)
  assert done.returncode == 0, done.stderr
  assert script in done.stdout and '#' not in done.stdout
  assert 'set -euo' not in done.stdout
  assert not machine.calls


def test_an_image_holds_nothing_that_git_ignores():
  ignored = (ROOT / '.gitignore').read_text().split()
  lines = (ROOT / '.dockerignore').read_text().splitlines()
  kept_out = {line.removeprefix('**/').strip('/') for line in lines}
  assert {name.strip('/') for name in ignored} | {'.git'} <= kept_out


def test_dry_runs_of_slurm(machine):
  hosts = dry(machine, 'slurm.sbatch')
  assert 'export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n' in hosts
  assert 'srun --ntasks-per-node=1 ' in hosts
  assert f'/shared/venv/bin/fractal-jax train --distributed {TRAIN}' in hosts
  assert 'scontrol requeue $SLURM_JOB_ID' in hosts
  gpus = dry(machine, 'slurm.sbatch', PROCESSES='gpu')
  assert 'JAX_LOCAL_DEVICE_IDS' not in gpus
  assert 'srun --ntasks-per-node=8 ' in gpus


def test_dry_runs_of_a_pod(machine):
  queued = dry(machine, 'tpu_pod.sh create', CREATE_FLAGS='--spot')
  assert 'queued-resources create pod --node-id=pod --project=proj' in queued
  assert '--accelerator-type=v5litepod-64' in queued and ' --spot' in queued
  direct = dry(machine, 'tpu_pod.sh create', QUEUED='no')
  assert 'tpu-vm create pod --project=proj' in direct
  assert 'queued-resources' not in direct
  # What a worker's shell makes of the command that it gets.
  *_, ssh = shlex.split(dry(machine, 'tpu_pod.sh run'))
  words = shlex.split(ssh.removeprefix('--command='))
  assert words[-4:] == [
    'train',
    '--distributed',
    '--config=configs/digits.py',
    '--workdir=/runs/a b',
  ]
  assert '--worker=0 ' in dry(machine, 'tpu_pod.sh logs')
  assert '--worker=all ' in dry(machine, 'tpu_pod.sh logs', WORKER='all')
  every = dry(machine, 'tpu_pod.sh restart')
  jobs = ('create pod', 'git archive', 'tpu-vm scp', 'worker.sh setup', 'train')
  places = [every.index(job) for job in jobs]
  assert places == sorted(places)


@pytest.mark.parametrize(
  'command, env, says',
  [
    ('cpu.sh', {'MAX_RESTARTS': 'many'}, 'MAX_RESTARTS=many'),
    ('slurm.sbatch', {'PROCESSES': 'node'}, 'PROCESSES=node'),
    ('slurm.sbatch', {}, 'no /shared/venv/bin/fractal-jax'),
    ('gpu.sh', {'EXTRAS': 'tfds; rm'}, 'EXTRAS=tfds; rm must be'),
    ('tpu_pod.sh create', {'QUEUED': '1'}, 'QUEUED=1'),
    ('tpu_pod.sh logs', {'WORKER': 'one'}, 'WORKER=one'),
    ('tpu_pod.sh launch', SLICE, 'usage'),
    ('tpu_pod.sh delete it', SLICE, 'delete takes no arguments'),
    ('gke/gke.sh', GKE, 'usage'),
    ('gke/gke.sh tpu', {'NAME': 'A_b'}, 'NAME=A_b'),
    ('gke/gke.sh tpu', {'TPU_TOPOLOGY': '64'}, 'TPU_TOPOLOGY=64'),
    ('gke/gke.sh tpu', {'TPU_TOPOLOGY': '3x3'}, 'CHIPS=4'),
    ('gke/gke.sh tpu', {'CHIPS': '0'}, 'CHIPS=0'),
    ('gke/gke.sh gpu', {'HOSTS': 'four'}, 'HOSTS=four'),
    ('gke/gke.sh gpu', {'WORKDIR': '${HOME}'}, 'must not hold'),
    ('gke/gke.sh gpu', {'WORKDIR': 'a\nb'}, 'line break'),
  ],
)
def test_bad_values_are_named(command, env, says, machine):
  env = {**NEEDS.get(command, {}), 'VENV': str(machine.venv), **env}
  if 'venv' in says:
    env['VENV'] = '/shared/venv'
  done = machine.launch(command, **env)
  assert done.returncode == 2
  assert says in done.stderr
  assert not [c for c in machine.calls if not c.startswith('python')]


# Restarts, for real


@pytest.mark.parametrize(
  'ends, runs, code',
  [
    (['exit 0'], 1, 0),
    (['exit 75', 'exit 0'], 2, 0),
    (['exit 2'], 1, 2),
    (['exit 130'], 1, 130),
    (['kill -KILL $$', 'exit 1', 'exit 0'], 3, 0),
    (['exit 75', 'exit 2'], 2, 2),
    (['exit 137'] * 9, 4, 137),
  ],
)
@pytest.mark.parametrize('script', ['cpu.sh', 'gpu.sh'])
def test_restarts_what_is_worth_it(script, ends, runs, code, machine):
  machine.ends('fractal-jax', *ends)
  done = machine.launch(script, VENV=str(machine.venv), **RUN)
  assert done.returncode == code
  assert machine.count('fractal-jax') == runs
  assert done.stderr.count('restart ') == runs - 1
  assert ('giving up' in done.stderr) == (len(ends) > runs)


def test_flags_reach_training(machine):
  flags = ['--config.optim.frozen=0,', "--config.data.dir=it's here"]
  done = machine.launch('cpu.sh', *flags, VENV=str(machine.venv), **RUN)
  assert not done.returncode
  [call] = machine.calls
  assert shlex.split(call) == [
    'fractal-jax',
    'train',
    '--config=configs/digits.py',
    '--workdir=/runs/a b',
    *flags,
  ]


@pytest.mark.parametrize(
  'flags, extras, tests',
  [
    (['-x'], '[test]', ['-x']),
    (['--quick', '-x'], '[dev]', ['@tests/quick.txt', '-x']),
  ],
)
def test_quick_tests_are_listed_and_need_little(flags, extras, tests, machine):
  (machine.venv / f'.installed{extras}').touch()
  done = machine.launch('test.sh', *flags, VENV=str(machine.venv))
  assert not done.returncode, done.stderr
  [call] = machine.calls  # nothing is installed
  words = shlex.split(call)
  assert words[:3] == ['python', '-m', 'pytest']
  assert words[words.index('--no-loadscope-reorder') + 1 :] == tests


def wait_for(found, seconds: float = 10) -> None:
  end = time.monotonic() + seconds
  while not found():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.02)


# Under nohup, or in a shell's background, SIGHUP and SIGINT are ignored, and a
# shell can't trap what it inherited as ignored: start it as a terminal does.
AS_IN_A_TERMINAL = """
import os, signal, sys
for ignored in (signal.SIGINT, signal.SIGHUP):
  signal.signal(ignored, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
  'sent', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name
)
def test_a_launcher_told_to_stop_lets_training_save(sent, machine):
  saves = 'trap "sleep 0.2; echo saved; exit 75" TERM; echo on; '
  machine.ends('fractal-jax', saves + 'while :; do sleep 0.05; done')
  process = subprocess.Popen(
    [sys.executable, '-c', AS_IN_A_TERMINAL, LAUNCH / 'cpu.sh'],
    env=machine.environment({**RUN, 'VENV': str(machine.venv)}),
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == 'on\n'
    process.send_signal(sent)
    assert process.communicate(timeout=10)[0] == 'saved\n'
  finally:
    process.kill()
  assert process.returncode == 75
  assert machine.count('fractal-jax') == 1


def test_gpu_host_without_a_gpu(machine):
  machine.tool(machine.venv / 'bin' / 'python', '[ "$1" != -c ] || exit 1')
  done = machine.launch('gpu.sh', VENV=str(machine.venv), **RUN)
  assert done.returncode == 2
  assert 'JAX sees no GPU' in done.stderr
  assert not machine.count('fractal-jax')


@pytest.mark.parametrize(
  'end, before, requeued',
  [
    ('exit 0', 0, False),
    ('exit 75', 0, True),
    ('exit 137', 19, True),
    ('exit 75', 20, False),
    ('exit 2', 0, False),
  ],
)
def test_slurm_requeues(end, before, requeued, machine):
  machine.ends('srun', end)
  env = {**RUN, 'VENV': str(machine.venv), 'SLURM_SUBMIT_DIR': str(ROOT)}
  env |= {'SLURM_GPUS_ON_NODE': '4', 'SLURM_JOB_ID': '77'}
  # Slurm runs a copy of the script, from elsewhere.
  copy = machine.path / 'slurm_script'
  copy.write_bytes((LAUNCH / 'slurm.sbatch').read_bytes())
  done = subprocess.run(
    ['bash', copy],
    env=machine.environment({**env, 'SLURM_RESTART_COUNT': str(before)}),
    cwd=machine.path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == int(end.split()[1]), done.stderr
  assert machine.count('srun') == 1
  assert ("scontrol 'requeue' '77'" in machine.calls) == requeued


def test_slurm_elsewhere_than_in_the_repository(machine):
  env = {**NEEDS['slurm.sbatch'], 'SLURM_SUBMIT_DIR': str(machine.path)}
  done = machine.launch('slurm.sbatch', **env)
  assert done.returncode == 2
  assert "submit from the repository's root" in ' '.join(done.stderr.split())


# A pod's worker


class Worker:
  def __init__(self, machine):
    self.env = machine.environment({'RUNS': str(machine.path / 'runs')})

  def begin(self, *args: str):
    return subprocess.Popen(
      [LAUNCH / 'worker.sh', *args],
      env=self.env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def __call__(self, *args: str) -> tuple[int, str]:
    process = self.begin(*args)
    text, _ = process.communicate(timeout=20)
    return process.returncode, text


@pytest.fixture
def worker(machine):
  return Worker(machine)


SAVES = 'trap "echo saved; exit 75" TERM; echo on; while :; do sleep 0.05; done'


@pytest.mark.parametrize('code', [0, 2, 75, 137])
def test_worker_passes_log_and_exit_code_on(code, worker):
  command = ['bash', '-c', f'echo log; exit {code}']
  assert worker('start', 'a', *command) == (code, 'log\n')
  # Once for each ID: gcloud tries a broken connection again.
  assert worker('start', 'a', 'false') == (code, 'log\n')
  assert worker('start', 'b', 'echo', 'new') == (0, 'new\n')


def test_worker_shows_the_log_of_the_last_start(worker):
  code, text = worker('logs')
  assert code == 1 and 'nothing was started' in text
  worker('start', 'b', 'echo', 'old')
  time.sleep(0.05)
  first = worker.begin('start', 'a', 'bash', '-c', SAVES)
  assert first.stdout.readline() == 'on\n'
  follows = worker.begin('logs')
  assert follows.stdout.readline() == 'on\n'
  assert worker('stop') == (0, '')
  assert follows.communicate(timeout=10)[0] == 'saved\n'
  assert worker('logs') == (0, 'on\nsaved\n')


def test_worker_survives_its_connection(worker):
  first = worker.begin('start', 'a', 'bash', '-c', SAVES)
  assert first.stdout.readline() == 'on\n'
  first.kill()
  again = worker.begin('start', 'a', 'false')
  assert again.stdout.readline() == 'on\n'
  assert worker('stop') == (0, '')
  assert again.communicate(timeout=10)[0] == 'saved\n'
  assert again.returncode == 75


def test_worker_stops_an_earlier_run(worker):
  first = worker.begin('start', 'a', 'bash', '-c', SAVES)
  assert first.stdout.readline() == 'on\n'
  assert worker('start', 'b', 'echo', 'new') == (0, 'new\n')
  assert first.wait(timeout=10) == 75


def test_worker_kills_what_does_not_stop(worker):
  worker.env['GRACE'] = '1'
  deaf = 'trap "" TERM; echo on; while :; do sleep 0.05; done'
  first = worker.begin('start', 'a', 'bash', '-c', deaf)
  assert first.stdout.readline() == 'on\n'
  assert worker('stop')[0] == 0
  assert first.wait(timeout=10) == 137


# A pod

# The slice's state, by whether it was asked for; training's ends, by number.
CLOUD = """
cd {path}
case "$*" in
  *" create "*) echo PROVISIONING > state ;;
  *" delete "*) rm state ;;
  *" list "*)
    cat state 2>/dev/null
    ! grep -q PROVISIONING state 2>/dev/null || echo ACTIVE > state ;;
  *"worker.sh start"*)
    echo >> trained
    case $(wc -l < trained) in
      1) echo SUSPENDED > state; exit 1 ;;  # the slice is gone
      2) exit 75 ;;  # saved
      *) exit {last} ;;
    esac ;;
esac
"""


@pytest.mark.parametrize('last', [0, 2])
def test_pod_is_made_again_after_preemption(last, machine):
  cloud = CLOUD.format(path=machine.path, last=last)
  machine.tool(machine.path / 'bin' / 'gcloud', cloud)
  env = {**NEEDS['tpu_pod.sh restart'], 'POLL': '0'}
  done = machine.launch('tpu_pod.sh restart', **env)
  assert done.returncode == last, done.stderr
  did, ids = [], []
  for call in machine.calls:
    words = shlex.split(call)
    if words[3] == 'queued-resources' and words[4] != 'list':
      did.append(words[4])
    elif 'worker.sh' in call:
      job, *rest = shlex.split(words[-1].split('worker.sh ')[1])
      did.append(job)
      ids += rest[:1]
  made = ['create', 'setup', 'start']
  assert did == [*made, 'delete', *made, 'setup', 'start']
  assert len(set(ids)) == 3  # else a worker would follow the last try


def test_pod_that_cannot_be_asked_for(machine):
  fails = 'case "$*" in *" create "*) exit 1 ;; esac'
  machine.tool(machine.path / 'bin' / 'gcloud', fails)
  env = {**NEEDS['tpu_pod.sh restart'], 'POLL': '0', 'MAX_RESTARTS': '2'}
  done = machine.launch('tpu_pod.sh restart', **env)
  assert done.returncode == 1
  assert sum(' create' in c.replace("'", '') for c in machine.calls) == 3
  assert 'giving up' in done.stderr


# Manifests

SCHEMA = yaml.safe_load((ROOT / 'tests' / 'jobset_schema.yaml').read_text())
KUBERNETES = ('1.29', '1.33')


def validate(manifest: dict) -> None:
  if manifest['kind'] != 'JobSet':
    for version in KUBERNETES:
      kubernetes_validate.validate(manifest, version, strict=True)
    return
  jsonschema.validate(manifest, SCHEMA)
  names = [job['name'] for job in manifest['spec']['replicatedJobs']]
  assert len(set(names)) == len(names)
  for job in manifest['spec']['replicatedJobs']:
    child = {'apiVersion': 'batch/v1', 'kind': 'Job', **job['template']}
    for version in KUBERNETES:
      kubernetes_validate.validate(child, version, strict=True)


def rendered(machine, kind: str, *flags: str, **env: str) -> list[dict]:
  env = {**NEEDS[f'gke/gke.sh {kind}'], **env}
  done = subprocess.run(
    [LAUNCH / 'gke' / 'gke.sh', '--dry-run', kind, *flags],
    env=machine.environment(env),
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  assert '${' not in done.stdout
  return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_manifests_fit_their_schemas(kind, machine):
  for manifest in rendered(machine, kind):
    validate(manifest)


def jobset(manifests: list[dict]) -> tuple[dict, dict, dict]:
  """The spec, the one job's, and its container."""
  [spec] = [m['spec'] for m in manifests if m['kind'] == 'JobSet']
  [job] = spec['replicatedJobs']
  [container] = job['template']['spec']['template']['spec']['containers']
  return spec, job, container


@pytest.mark.parametrize(
  'topology, chips, hosts',
  [('8x8', '4', 16), ('4x4x8', '4', 32), ('2x4', '8', 1)],
)
def test_tpu_manifest_counts_hosts(topology, chips, hosts, machine):
  env = {'TPU_TOPOLOGY': topology, 'CHIPS': chips, 'SLICES': '3'}
  _, job, container = jobset(rendered(machine, 'tpu', **env))
  assert job['replicas'] == 3
  assert job['template']['spec']['parallelism'] == hosts
  assert job['template']['spec']['completions'] == hosts
  assert container['resources']['limits'] == {'google.com/tpu': int(chips)}


def test_slices_are_told_to_the_mesh(machine):
  def flags(*given, **env):
    return jobset(rendered(machine, 'tpu', *given, **env))[2]['args'][4:]

  assert flags() == flags(SLICES='1') == []
  assert flags(SLICES='2') == ['--config.mesh.slices=2']
  own = '--config.mesh.slices=4'  # the last one wins
  assert flags(own, SLICES='2') == ['--config.mesh.slices=2', own]


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_manifest_flags_and_restarts(kind, machine):
  flags = ["--config.data.dir=it's & {$(x)}: *y", '--config.optim.frozen=0,']
  spec, job, container = jobset(
    rendered(machine, kind, *flags, MAX_RESTARTS='7')
  )
  assert container['command'] == ['fractal-jax']
  assert container['args'] == [
    'train',
    '--distributed',
    '--config=configs/digits.py',
    '--workdir=/runs/a b',
    *flags,
  ]
  # Exit code 2 fails the job for a reason of its own, which fails the set; any
  # other failure restarts it.
  assert spec['failurePolicy']['maxRestarts'] == 7
  [rule] = spec['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  job = job['template']['spec']
  [rule] = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2]
  assert rule['onExitCodes']['containerName'] == container['name']
  assert job['backoffLimit'] == 0
  assert job['template']['spec']['restartPolicy'] == 'Never'


def test_kubectl_gets_the_manifest(machine):
  kubectl = machine.path / 'bin' / 'kubectl'
  machine.tool(kubectl, f'cat > {machine.path}/applied')
  done = machine.launch('gke/gke.sh gpu', **NEEDS['gke/gke.sh gpu'])
  assert not done.returncode, done.stderr
  applied = list(yaml.safe_load_all((machine.path / 'applied').read_text()))
  assert applied == rendered(machine, 'gpu')


def test_a_variable_of_a_manifest_that_nothing_sets(machine, tmp_path):
  copy = tmp_path / 'launch'
  (copy / 'gke').mkdir(parents=True)
  for name in ('common.sh', 'gke/gke.sh', 'gke/tpu.yaml'):
    (copy / name).write_bytes((LAUNCH / name).read_bytes())
  with (copy / 'gke' / 'tpu.yaml').open('a') as f:
    f.write('# ${FORGOTTEN}\n')
  done = subprocess.run(
    ['bash', copy / 'gke' / 'gke.sh', '--dry-run', 'tpu'],
    env=machine.environment(NEEDS['gke/gke.sh tpu']),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert 'tpu.yaml names FORGOTTEN' in done.stderr


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_validation_sees_mistakes(kind, machine):
  def broken(change):
    manifests = rendered(machine, kind)
    change(*jobset(manifests))
    with pytest.raises(jsonschema.ValidationError):
      for manifest in manifests:
        validate(manifest)

  broken(lambda spec, job, box: spec.update(maxRestarts=3))
  broken(lambda spec, job, box: spec['failurePolicy'].update(maxRestarts='3'))
  broken(lambda spec, job, box: spec['failurePolicy']['rules'][0].pop('name'))
  broken(lambda spec, job, box: job.pop('template'))
  broken(lambda spec, job, box: job['template']['spec'].update(paralelism=2))
  broken(lambda spec, job, box: box.update(args='train'))
  broken(lambda spec, job, box: box['ports'][0].update(containerPort='1'))


@pytest.mark.parametrize(
  'user, has, calls',
  [
    ('0', ('chromium', 'chromedriver'), []),
    ('0', ('chromium',), ['update', 'install']),
    ('1000', ('chromium',), None),
  ],
)
def test_browser_is_installed_where_it_is_missing(machine, user, has, calls):
  """On Debian as root; elsewhere the message says what to install."""
  folder = machine.path / 'bin'
  for tool in (*has, 'apt-get'):
    machine.tool(folder / tool)
  for tool in ('bash', 'dirname', 'env'):
    (folder / tool).symlink_to(shutil.which(tool))
  executable(folder / 'id', f'echo {user}')
  executable(folder / 'grep', '')  # /etc/os-release says that it is Debian
  found = machine.launch('browser.sh', PATH=str(folder))
  if calls is None:
    assert found.returncode == 1
    assert 'apt-get install chromium chromium-driver' in found.stderr
    calls = []
  else:
    assert found.returncode == 0, found.stderr
  assert [x.split()[1].strip("'") for x in machine.calls] == calls
