# Two commands do everything on a fresh machine: `make demo` and `make test`. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

SERVERS = triton kserve mlserver ray
PYTHON311 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python)),python3.11)

PYTHON312 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python)),python3.12)
ANDROID_TESTS ?= tests/core $(patsubst %,tests/test_%.py,android_demo android_build onnx java_onnx router settings cloud http1 \
	httpx_client connections outbox queued late cache only_edge refine threads)

# those with a requirements.txt have a program, main.py, and an environment of their own
EXAMPLES = $(patsubst examples/%/requirements.txt,%,$(wildcard examples/*/requirements.txt))

.PHONY: demo test test-examples $(EXAMPLES:%=example-%) $(EXAMPLES:%=test-example-%) test-android test-arm64 test-servers $(SERVERS:%=server-%) check bench figures bench-promises campaign fuzz models docs site clean

demo: $(VENV)/demo.installed  ## sets up and runs the main job
	$(BIN)/edgeroute demo

test: $(VENV)/test.installed  ## sets up and passes the tests
	$(BIN)/pytest -n 4 --dist worksteal --cov --cov-fail-under=100

test-arm64: $(VENV)/bin/python  ## the core suite, ONNX Runtime and LiteRT on emulated arm64 (apt-get install qemu-user-static)
	PYTHON=$(BIN)/python tests/arm64.sh

test-android: .android/made  ## the app for Android and what it uses, on its Python 3.12 with its exact versions (ANDROID_TESTS=tests: all)
	TEST_INDEX=1 .android/bin/pytest -q -n 2 --dist loadfile $(ANDROID_TESTS)

$(EXAMPLES:%=example-%): example-%: .examples/%/made  ## sets up and runs an example; ARGS='...' are its arguments
	.examples/$*/bin/python examples/$*/main.py $(ARGS)

test-examples: $(EXAMPLES:%=test-example-%)  ## each example with the packages that it really uses

$(EXAMPLES:%=test-example-%): test-example-%: .examples/%/made
	.examples/$*/bin/pytest -q examples/$*

test-servers: $(VENV)/test.installed  ## OpenInference and exports with the real servers whose environments are made (make server-triton ...)
	$(BIN)/pytest -q -m servers tests/test_servers.py tests/test_export.py tests/test_export_triton.py tests/test_export_ray.py

$(SERVERS:%=server-%): server-%: .servers/%/made  ## an environment of its own for a real server: Triton, KServe, MLServer, Ray Serve

check: $(VENV)/test.installed  ## linter, formatter, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin
	$(BIN)/mypy --platform win32

bench: $(VENV)/bench.installed  ## every figure, in one table
	$(BIN)/python benchmarks/run.py

figures: $(VENV)/bench.installed  ## measures as bench does, and writes docs/figures.md of it
	$(BIN)/python benchmarks/run.py --write

bench-promises: $(VENV)/demo.installed  ## what is promised and what holds, per task; ARGS='--routerarena FILE' adds recorded sets
	$(BIN)/python benchmarks/promises.py $(ARGS)

campaign: $(VENV)/test.installed  ## ten thousand random fault schedules (about ten minutes)
	$(BIN)/python tests/campaign.py

fuzz: $(VENV)/test.installed  ## everything that is read from outside, for an hour
	$(BIN)/python tests/fuzz.py --seconds 300

models: $(VENV)/models.installed  ## trains, distils, prunes and quantises the shipped pair again (about an hour and a half)
	$(BIN)/python models/recipes/fashion.py

docs: $(VENV)/test.installed  ## writes what is generated in docs/
	$(BIN)/python -c "from pathlib import Path; from edgeroute.settings import reference; Path('docs/policy.md').write_text(reference())"
	$(BIN)/python -c "from pathlib import Path; from edgeroute.cli.app import app; from edgeroute.cli.reference import reference; Path('docs/commands.md').write_text(reference(app))"

site: .site/made  ## the documentation as a site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 .site/bin/mkdocs build  # not --quiet, which would let warnings pass

clean:
	rm -rf $(VENV) .android .examples .site build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/uv.installed: $(VENV)/bin/python
	$(BIN)/pip install --quiet uv
	touch $@

$(VENV)/demo.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/test.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[all]' --group test
	touch $@

$(VENV)/bench.installed: $(VENV)/demo.installed
	$(BIN)/pip install --quiet --group bench
	touch $@

# the versions that a phone gets, and of parsers the one in Python
.android/made: pyproject.toml android_demo/pyproject.toml $(VENV)/test.installed
	$(BIN)/uv venv --quiet --clear --seed --python $(PYTHON312) .android
	sed -n 's/^    "\(.*==.*\)",$$/\1/p' android_demo/pyproject.toml > .android/pins.txt
	$(BIN)/uv pip install --quiet --python .android/bin/python --constraint .android/pins.txt --requirement .android/pins.txt \
		--editable '.[grpc,image,serve]' --group browser flet-cli==1.0.5 h11 hypothesis onnx psutil pydantic-settings pytest \
		pytest-timeout pytest-xdist trustme
	$(BIN)/uv pip uninstall --quiet --python .android/bin/python httptools
	touch $@

# no-deps.txt: what a package declares and the example does not use is not installed
.examples/%/made: examples/%/requirements.txt pyproject.toml $(VENV)/uv.installed
	$(BIN)/uv venv --quiet --clear --python $(PYTHON311) .examples/$*
	$(BIN)/uv pip install --quiet --python .examples/$*/bin/python --editable '.[cli,onnx]' --requirement $< pytest pytest-timeout
	if [ -e examples/$*/no-deps.txt ]; then \
		$(BIN)/uv pip install --quiet --python .examples/$*/bin/python --no-deps --requirement examples/$*/no-deps.txt; \
	fi
	touch $@

.site/made: pyproject.toml
	$(PYTHON) -m venv --clear .site
	.site/bin/python -m pip install --quiet --upgrade pip
	.site/bin/pip install --quiet --group site
	touch $@

# each server pins its own numpy and protobuf; all run on Python 3.11, for which Triton's Python backend is built
.servers/%/made: tests/servers/%.txt $(VENV)/test.installed
	$(BIN)/uv venv --quiet --clear --python $(PYTHON311) .servers/$*
	$(BIN)/uv pip install --quiet --python .servers/$*/bin/python --requirement $<
	for more in $(wildcard tests/servers/$*-*.txt); do \
		$(BIN)/uv venv --quiet --python $(PYTHON311) .servers/$*/numpy2; \
		$(BIN)/uv pip install --quiet --python .servers/$*/numpy2/bin/python --requirement $$more || exit 1; \
	done
	touch $@

$(VENV)/models.installed: $(VENV)/bin/python models/recipes/requirements.txt
	$(BIN)/pip install --quiet --editable . -r models/recipes/requirements.txt
	touch $@
