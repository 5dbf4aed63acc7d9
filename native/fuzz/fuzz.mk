# Fuzz targets: fuzz_<name>.c each define LLVMFuzzerTestOneInput; the kept corpus is corpus/<name>/. Included by
# ../tests/Makefile. A finding stays as build/crash-* and fails the run.

FUZZ_DIR := $(NATIVE)/fuzz
FUZZ_BUILD := $(FUZZ_DIR)/build
FUZZ_TARGETS := $(patsubst $(FUZZ_DIR)/fuzz_%.c,%,$(wildcard $(addsuffix .c,$(addprefix $(FUZZ_DIR)/fuzz_,$(F)))))
FUZZ_CC ?= clang
FUZZ_FLAGS := $(BASE) -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -DMN_FUZZING
FUZZ_OBJECTS := $(patsubst $(NATIVE)/%.c,$(FUZZ_BUILD)/%.o,$(SOURCES))
FUZZ_MAX_LEN ?= 4096

.PHONY: fuzz fuzz-build fuzz-replay fuzz-merge
fuzz-build: $(addprefix $(FUZZ_BUILD)/fuzz_,$(FUZZ_TARGETS))

$(FUZZ_BUILD)/%.o: $(NATIVE)/%.c
	@mkdir -p $(dir $@)
	@$(FUZZ_CC) $(FUZZ_FLAGS) -c $< -o $@

$(FUZZ_BUILD)/fuzz_%: $(FUZZ_DIR)/fuzz_%.c $(FUZZ_OBJECTS)
	@mkdir -p $(dir $@)
	@$(FUZZ_CC) $(filter-out -MMD -MP,$(FUZZ_FLAGS)) -fsanitize=fuzzer $^ -o $@ $(LIBS)

# New inputs go to build/found/<name>; fuzz-merge folds what they add into the kept corpus.
fuzz: fuzz-build
	@for t in $(FUZZ_TARGETS); do \
	    mkdir -p $(FUZZ_BUILD)/found/$$t $(FUZZ_DIR)/corpus/$$t; \
	    echo "fuzz_$$t: $(FUZZ_SECONDS) s"; \
	    $(FUZZ_BUILD)/fuzz_$$t -max_total_time=$(FUZZ_SECONDS) -max_len=$(FUZZ_MAX_LEN) -timeout=10 -rss_limit_mb=1024 \
	        -artifact_prefix=$(FUZZ_BUILD)/crash-$$t- -print_final_stats=1 \
	        $(FUZZ_BUILD)/found/$$t $(FUZZ_DIR)/corpus/$$t > $(FUZZ_BUILD)/fuzz_$$t.log 2>&1 \
	        || { tail -n 60 $(FUZZ_BUILD)/fuzz_$$t.log; exit 1; }; \
	    grep -E 'stat::number_of_executed_units' $(FUZZ_BUILD)/fuzz_$$t.log || true; \
	done

fuzz-merge: fuzz-build
	@for t in $(FUZZ_TARGETS); do \
	    rm -rf $(FUZZ_BUILD)/merged && mkdir -p $(FUZZ_BUILD)/merged $(FUZZ_BUILD)/found/$$t $(FUZZ_DIR)/corpus/$$t; \
	    $(FUZZ_BUILD)/fuzz_$$t -merge=1 -max_len=$(FUZZ_MAX_LEN) $(FUZZ_BUILD)/merged $(FUZZ_DIR)/corpus/$$t \
	        $(FUZZ_BUILD)/found/$$t > $(FUZZ_BUILD)/merge_$$t.log 2>&1 || { tail -n 40 $(FUZZ_BUILD)/merge_$$t.log; exit 1; }; \
	    rm -rf $(FUZZ_DIR)/corpus/$$t && mv $(FUZZ_BUILD)/merged $(FUZZ_DIR)/corpus/$$t; \
	    du -sh --apparent-size $(FUZZ_DIR)/corpus/$$t; \
	done

# Without clang: replay.c is a main that feeds each file named on its command line to the target.
$(BUILD)/replay_%: $(FUZZ_DIR)/fuzz_%.c $(FUZZ_DIR)/replay.c $(OBJECTS)
	@mkdir -p $(dir $@)
	@$(CC) $(filter-out -MMD -MP,$(FLAGS)) -DMN_FUZZING $^ -o $@ $(LIBS)

fuzz-replay: $(addprefix $(BUILD)/replay_,$(FUZZ_TARGETS))
	@for t in $(FUZZ_TARGETS); do \
	    find $(FUZZ_DIR)/corpus/$$t -type f 2>/dev/null | xargs -r timeout $(TEST_SECONDS) $(BUILD)/replay_$$t || exit 1; \
	    echo "ok    corpus of $$t"; \
	done

-include $(shell find $(FUZZ_BUILD) -name '*.d' 2>/dev/null)
