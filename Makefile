# make demo          trains and scores MoTE on MovingShapes, from nothing but Python >= 3.11
# make test          runs every test that needs no data and takes less than minutes
# make test-slow     runs the others
# make test-latest   runs the tests on the newest packages that there are, and says which one broke
# make lock          as test-latest, and writes those versions to constraints.txt if all tests pass
# make pictures      takes the README's screenshot of the app, after make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-slow test-latest lock pictures style quality clean

# Made anew when the dependencies change; pip says what it could not find.
$(VENV)/.made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What the demo needs, and what the tests need beyond it.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing into $(VENV)/: 6 GB, most of it PyTorch, in 2 to 5 minutes; pip says nothing until it is done."
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing into $(VENV)/: 7 GB, most of it PyTorch, in 2 to 5 minutes; pip says nothing until it is done."
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no examples/train.py
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests

test-latest:
	$(PYTHON) tests/latest.py

lock:
	$(PYTHON) tests/latest.py --write constraints.txt $(foreach package,$(HOLD),--hold $(package))

pictures: $(VENV)/.dev
	MOTE_PICTURES=docs/pictures $(BIN)/python -m pytest -m slow tests/commands/test_app.py -k picture

style: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# mypy reads the packages as they are installed: processing/ as modeling_mote.processing.
quality: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/types && mkdir -p build/types/modeling_mote
	ln -s $(CURDIR)/modeling_mote/* $(CURDIR)/processing build/types/modeling_mote/
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-latest runs results build dist *.egg-info
