# The two commands of the README, and what a developer needs beside them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in so many processes of one thread each: every one holds torch, about 1 GB.
WORKERS ?= 2
# A process keeps to neighbouring tests, which share what they prepare, until it has none left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-isa lint format clean

demo: $(VENV)/installed
	$(BIN)/brainfast demo

test: $(VENV)/installed-test
	$(PYTEST)

# What depends on the instruction set, under each that machines fall back to; `test` has run what
# names its own.
ISA_TESTS := tests/ops tests/models tests/test_folded.py tests/test_encoder.py \
	tests/test_doctor.py tests/test_parity.py tests/test_processes.py
test-isa: $(VENV)/installed-test
	for isa in $$($(BIN)/python -c "from brainfast import _C; \
			print('portable', *{'avx2'}.intersection(_C.supported_isas()), 'amx-emulated')"); do \
		echo "== BRAINFAST_ISA=$$isa" && \
		BRAINFAST_ISA=$$isa $(PYTEST) -q -m "not any_isa" $(ISA_TESTS) || exit 1; \
	done

lint: $(VENV)/installed-dev
	sh tools/lint.sh $(abspath $(BIN))

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find brainfast csrc export -type f \
	-not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install .
	touch $@

$(VENV)/installed-test: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install '.[test]'
	touch $@

# The linters of `dev` beside what `test` installed, so that the wheel is not built twice.
LINTERS := import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*(name for name in project['optional-dependencies']['dev'] if 'brainfast' not in name))
$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/pip install $$($(BIN)/python -c "$(LINTERS)")
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
