# make demo, make test: all that a fresh machine needs is Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make gpu` certifies: a hub id or a folder.
MODEL ?= tiny
export OMP_NUM_THREADS ?= 1
# Where it is set, pytest would compile each test file again in each of its processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo quick test lint soak floor million rehearsals gpu figures docs system-packages clean

# torch first and pinned: the newest would bring several GB of CUDA packages to a machine without a GPU.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep ^torch== constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(BIN)/.installed
	rm -rf outputs/demo
	DG_XDIT_ULYSSES_DEGREE=2 $(BIN)/torchrun --standalone --nproc_per_node 2 -m dglaunch t2i --backend xdit \
	    --model_name tiny --prompts_file examples/prompts.jsonl --batch_size 4 --output_dir outputs/demo --gallery
	@echo "The images are in outputs/demo; open outputs/demo/gallery.html to look through them."

# Style, the order of the packages, types, and that the generated parts of the documentation are up to date.
lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

# The tests on a real Slurm and in a real browser need Debian's packages; without root, or elsewhere, they are skipped.
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    command -v slurmctld >/dev/null && command -v chromedriver >/dev/null || apt-get update -qq >/dev/null 2>&1; \
	    command -v slurmctld >/dev/null || $(INSTALL) slurmctld slurmd slurm-client munge iproute2 shellcheck >/dev/null 2>&1 \
	        || echo "Slurm could not be installed; its tests are skipped."; \
	    command -v chromedriver >/dev/null || $(INSTALL) chromium chromium-driver >/dev/null 2>&1 \
	        || echo "Chromium could not be installed; the tests of the gallery in a browser are skipped."; fi

# Side by side and in any order; what a file makes for all of its tests is made once, so its tests stay together. Three on two cores: while
# one waits, for Slurm or a rank's end, the others compute.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

# What to run while you write.
quick: lint
	$(PYTEST) tests/unit

# Everything but what is marked slow: what CI runs.
test: lint system-packages
	$(PYTEST)

# Slow and rare: every split of every family, 20 kills, a million prompts. One at a time, as some take the whole machine.
soak: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow --ignore tests/torchrun/test_true_size_splits.py

# The oldest diffusers that pyproject.toml lets in, beside all else as constraints.txt has it: the unit tests, and what a family, an
# edit, a LoRA, weights and a scheduler are on it. What that diffusers lacks is skipped, and says so. A quarter of an hour.
FLOOR_VERSION := $(shell sed -n 's/.*"diffusers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
FLOOR := $(VENV)-floor
PACKAGES_OF := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
FLOOR_TESTS := $(addprefix tests/torchrun/test_,$(addsuffix .py,t2i_models edit_models loras weight_files schedulers))
floor: $(FLOOR)/diffusers-$(FLOOR_VERSION)
	$(FLOOR)/bin/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder tests/unit $(FLOOR_TESTS)

# diffusers first: a pip that sees the others' environment would want to take the newer one out of it.
$(FLOOR)/diffusers-$(FLOOR_VERSION): $(BIN)/.installed
	rm -rf $(FLOOR)
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet --disable-pip-version-check --no-deps "diffusers==$(FLOOR_VERSION)"
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_OF))')" > "$$($(FLOOR)/bin/python $(PACKAGES_OF))/others.pth"
	touch $@

# A million images on two ranks that are killed 20 times: an hour on two idle cores, 5 GB in outputs/million, with a plot of memory.
million: $(BIN)/.installed
	MILLION_IMAGES=1000000 MILLION_FOLDER=outputs/million $(BIN)/python -m pytest -m slow -s tests/torchrun/test_million.py

# Every split of every family at the true size of a published model, on fake tensors: an hour. Each test takes all cores.
rehearsals: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow tests/torchrun/test_true_size_splits.py

# On a machine with a CUDA GPU, with the Python that has its torch (not .venv, whose torch is for CPUs): `dglaunch certify` of
# MODEL on all GPUs (outputs/certify has its page), the flags that need a GPU, and FLUX.1-dev's true size, whose row is appended
# to kernels_bench/results. Elsewhere all of it is skipped.
gpu:
	CERTIFY_MODEL=$(MODEL) $(PYTHON) -m pytest tests/gpu -s

# Trace the known models anew at the usual sizes, after an update of torch, diffusers or transformers: an hour.
figures: $(BIN)/.installed
	$(BIN)/python -m dglaunch.planning.shipping

# The generated parts of README.md and docs/: flags, families, optimizations, the tree.
docs: $(BIN)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) outputs
