/* Numbers of the engine by name, and the answers to synchronous questions. */
#ifndef MN_ENGINE_STATS_H
#define MN_ENGINE_STATS_H

struct mn_engine;
struct mn_command;

/* Engine side: fill in the answer to `cmd` (its result is err) and wake whoever asked. */
void mn_stats_answer(struct mn_engine *e, const struct mn_command *cmd, int err);

#endif
