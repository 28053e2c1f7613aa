# make study   install into .venv and run the main job: both dictionaries; reports, figures and tables in runs/
# make test    everything that has to hold: lint, types, the compiled core, the package
# make check   what most mistakes break, in less than 2 minutes once built: lint, types, docs, the fast tests
# make cuda-build  compile the CUDA kernels and their tests (takes nvcc, no device); prints registers and occupancy
# make cuda-test   run them on a device, and time them
# make test-aarch64   the compiled core for ARM, cross-compiled and run under qemu
# make bench   speed against named peers, into docs/benchmarks.md (some 12 minutes on 2 cores), and the factors between
#              their conventions and ours, into docs/conventions.md
# make docs    the documentation, into site/; make docs-check   that, spelling and docstrings (part of make test)
# make wheel   wheel and sdist into dist/; make test-wheel   the wheel in an environment of its own, without a compiler
# make test-oldest   the oldest dependencies that pyproject.toml allows
# make test-gpu    the tests that need a CUDA device, on one; make bench-gpu   times there, and what to report
# Every target sets up what it needs by itself. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell getconf _NPROCESSORS_ONLN)
CORE := $(wildcard CMakeLists.txt csrc/CMakeLists.txt csrc/*/*.?pp csrc/cuda/*.cu* csrc/include/*/*.hpp python/*)
CXX_FILES := $(wildcard csrc/*/*.?pp csrc/cuda/host/*.?pp csrc/*/*.cu csrc/*/*.cuh csrc/include/*/*.hpp python/*.?pp)
TIDY_FILES := $(wildcard csrc/common/*.cpp csrc/cpu/*.cpp csrc/cuda/host/*.cpp)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: study test check lint lint-quick format docs docs-check test-core cuda-build cuda-test test-aarch64 test-python bench \
  test-gpu bench-gpu wheel test-wheel test-oldest clean

# Finished runs are kept; one that was stopped, whenever that was, goes on where it was.
RUNS := runs/pair runs/binary runs/fashion-mnist
study: $(RUNS:=/report.html)
	@for run in $(RUNS); do echo; cat $$run/summary.txt; done; echo; echo "reports: $^; figures beside them"

runs/%/report.html: runs/%/dataset.zarr
	$(BIN)/fastcrit report $(@D) --force > /dev/null

runs/pair/dataset.zarr: STUDY := --dictionary binary --patterns 0
runs/binary/dataset.zarr: STUDY := --dictionary binary
runs/fashion-mnist/dataset.zarr: STUDY := --dictionary fashion-mnist
runs/%/dataset.zarr: | .venv/study
	$(BIN)/fastcrit study patch $(STUDY) --out $(@D) --resume > /dev/null

test: lint docs-check test-core test-python

# Together less than a minute on two cores: a file of each storey, and what a change of names or files breaks.
FAST := $(patsubst %,tests/test_%.py,imports public_names package extras environment study_options integers masks \
  named_axes extreme_values lengths_of_nothing crops offsets observe schedules theory dictionary data denoiser guidance \
  store untrusted_files)
check: lint-quick docs-check
	$(PYTEST) $(FAST)

lint: lint-quick build/core/build.ninja
	printf '%s\n' $(TIDY_FILES) | xargs -P $(CORES) -n 1 $(BIN)/clang-tidy -p build/core --quiet

lint-quick: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

# What lint would refuse and a tool can mend.
format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Warnings, and links inside the site that lead nowhere, are errors.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-check: docs
	$(BIN)/codespell
	$(BIN)/interrogate --quiet fastcrit
	$(BIN)/numpydoc lint --config . $(wildcard fastcrit/[a-z]*.py fastcrit/[a-z]*/[a-z]*.py fastcrit/[a-z]*/*/[a-z]*.py)

# The compiled core alone, plain and under each sanitizer.
test-core: build/core/build.ninja build/core-address/build.ninja build/core-thread/build.ninja
	for build in core core-address core-thread; do \
	  $(BIN)/cmake --build build/$$build && $(BIN)/ctest --test-dir build/$$build --output-on-failure \
	    --parallel $(CORES) || exit 1; \
	done

# The kernels for every architecture of csrc/cuda/CMakeLists.txt. Fails on a warning, a spilled register, or less than
# half of a multiprocessor's threads.
cuda-build: .venv/dev
	$(BIN)/cmake -S . -B build/cuda $(CORE_OPTIONS) -DFASTCRIT_CUDA=on -DFASTCRIT_CUDA_REPORT=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build build/cuda --clean-first --target fastcrit_cuda > build/cuda/report.txt || \
	  { cat build/cuda/report.txt; exit 1; }
	$(BIN)/cmake --build build/cuda --target test_cuda bench_cuda
	$(BIN)/python csrc/cuda/report.py < build/cuda/report.txt

cuda-test: cuda-build
	$(BIN)/ctest --test-dir build/cuda --output-on-failure -R cuda_on_device
	build/cuda/csrc/cuda/bench_cuda

# The core for aarch64, run under emulation. Needs Debian's g++-aarch64-linux-gnu and qemu-user. Not part of make test.
test-aarch64: .venv/dev
	$(BIN)/cmake -S . -B build/core-aarch64 $(CORE_OPTIONS) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu'
	$(BIN)/cmake --build build/core-aarch64
	$(BIN)/ctest --test-dir build/core-aarch64 --output-on-failure

# The package; the test class of all implementations once more with the CUDA kernels, on the processor.
# A process a core, each with one thread unless a test asks for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto
test-python: .venv/dev build/core/build.ninja
	$(PYTEST)
	$(BIN)/cmake --build build/core
	FASTCRIT_TEST_CORE=build/core/python $(PYTEST) tests/test_devices.py

# Passive waiting: the peers' idle OpenMP threads would otherwise spin for milliseconds on the cores being timed.
# glibc hands arrays of more than 32 MiB back to the system, and page faults of a fresh mapping in every call slow the
# peers down. That is what their users see; once more without it.
KEEP := 4294967296
BENCH := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest benches -s --benchmark-enable --benchmark-only \
  --benchmark-disable-gc --benchmark-json
bench: .venv/bench
	mkdir -p build
	$(BENCH) build/benchmarks.json
	GLIBC_TUNABLES=glibc.malloc.mmap_threshold=$(KEEP):glibc.malloc.trim_threshold=$(KEEP) \
	  $(BENCH) build/benchmarks-kept.json -k test_spectrum
	$(BIN)/python -m benches.report build/benchmarks.json build/benchmarks-kept.json
	$(BIN)/python -m benches.conventions

# On a machine with a CUDA device that torch sees. GPU_PYTHON=python3 takes an environment that has fastcrit, torch and
# pytest already; what that environment warns of is not what is tested.
GPU_PYTHON := $(BIN)/python
test-gpu bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/dev)
test-gpu:
	$(GPU_PYTHON) -m pytest -o addopts=-ra -o filterwarnings=default tests/gpu
bench-gpu:
	$(GPU_PYTHON) -m benches.gpu

# Wheel and sdist by PYTHON. auditwheel says how old a system it runs on; a wheel for all is built in its container:
# see [tool.cibuildwheel] in pyproject.toml.
LARGEST_WHEEL := 15000000
wheel:
	rm -rf build/release dist
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet --disable-pip-version-check build auditwheel
	build/release/bin/python -m build
	ls -l dist
	test $$(stat -c %s dist/*.whl) -le $(LARGEST_WHEEL)
	build/release/bin/auditwheel show dist/*.whl | tee build/release/platform.txt
	grep -q manylinux build/release/platform.txt

# What is installed is the wheel and packages that have one; nothing of this folder but tests/ is in reach.
APART := build/apart
CLEAN := env -u PYTHONPATH PATH=$(abspath $(APART)/bin)
test-wheel: wheel
	rm -rf $(APART)
	$(PYTHON) -m venv $(APART)
	$(CLEAN) python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
	  --constraint constraints.txt "$$(echo dist/*.whl)[study,images,torch]" pytest hypothesis mypy
	$(RUN_APART)
	cd $(APART) && $(CLEAN) python -m mypy --strict tests/user_script.py

# Direct dependencies at their lowest; torch is constraints.txt's.
test-oldest: wheel
	rm -rf $(APART)
	$(PYTHON) -m venv $(APART)
	$(APART)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(APART)/bin/uv pip compile --quiet pyproject.toml --extra study --extra images --resolution lowest-direct \
	  --python $(APART)/bin/python --output-file $(APART)/oldest.txt
	$(CLEAN) python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
	  --constraint constraints.txt --constraint $(APART)/oldest.txt \
	  "$$(echo dist/*.whl)[study,images,torch]" pytest hypothesis
	$(RUN_APART)

define RUN_APART
cp -r tests $(APART)/tests
cd $(APART) && $(CLEAN) python -m pytest -c tests/apart.ini $(addprefix tests/,$(TESTS_APART))
endef
# Spectra against their oracles, with every instruction set; lengths; recorders; the patch model; files; the command.
TESTS_APART := test_spectra.py test_correlation.py test_observe.py test_critical.py test_theory.py test_gaussian.py \
  test_dictionary.py test_sampler.py test_schedules.py test_store.py test_study.py test_package.py

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

# The package is installed editable; its core is built again when a source changes.
.venv/study: .venv/pyvenv.cfg pyproject.toml constraints.txt $(CORE)
	$(PIP) --editable '.[study]'
	touch $@

.venv/dev: .venv/pyvenv.cfg pyproject.toml constraints.txt $(CORE)
	$(PIP) --editable '.[dev]'
	@# One of the tests' clients; with its dependencies it would bring torchvision.
	$(PIP) --no-deps smalldiffusion
	touch $@ .venv/study

.venv/bench: .venv/pyvenv.cfg pyproject.toml constraints.txt $(CORE)
	$(PIP) --editable '.[bench]'
	touch $@ .venv/dev .venv/study

TESTED := -G Ninja -DFASTCRIT_TESTS=ON -DFASTCRIT_WERROR=ON
CORE_OPTIONS := $(TESTED) -DFASTCRIT_PYTHON=OFF -DFASTCRIT_CUDA=off
SANITIZED := -DCMAKE_BUILD_TYPE=RelWithDebInfo

# With a Python module that has the CUDA kernels for the processor.
build/core/build.ninja: .venv/dev
	$(BIN)/cmake -S . -B build/core $(TESTED) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DFASTCRIT_CUDA=host \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
build/core-address/build.ninja: .venv/dev
	$(BIN)/cmake -S . -B build/core-address $(CORE_OPTIONS) $(SANITIZED) -DFASTCRIT_SANITIZE=address,undefined \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
build/core-thread/build.ninja: .venv/dev
	$(BIN)/cmake -S . -B build/core-thread $(CORE_OPTIONS) $(SANITIZED) -DFASTCRIT_SANITIZE=thread \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
