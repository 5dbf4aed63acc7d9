/* struct mn_relay and what its files know of each other. Not for anyone outside relay/. */
#ifndef MN_RELAY_INTERNAL_H
#define MN_RELAY_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "../mem/wheel.h"
#include "guard.h"
#include "relay.h"
#include "tls.h"
#include "websocket.h"

enum {
    MN_RELAY_PLAIN = 256 << 10,  /* decrypted bytes of one read, behind what the last one left */
    MN_RELAY_RAW_MAX = 16 << 10, /* read from a connection that is not logged in before Python has answered */
    MN_RELAY_LISTENERS = 16,
    MN_RELAY_READY = 128,
    MN_RELAY_WRITES = 4, /* batches to one client before the next one's turn */
    MN_RELAY_PING_AFTER_MS = 45000,
    MN_RELAY_PING_WAIT_MS = 15000,
};

/* Tags of what epoll watches: commands, those who are not logged in yet, listeners, else the id of a connection. */
#define MN_RELAY_TAG_COMMANDS UINT64_MAX
#define MN_RELAY_TAG_LOBBY (UINT64_MAX - 1)
#define MN_RELAY_TAG_LISTENER (1ULL << 63)

enum mn_relay_phase {
    MN_PHASE_SHAKING,
    MN_PHASE_RAW,
    MN_PHASE_OPEN,
    MN_PHASE_CLOSING, /* what was written leaves, then the end */
};

struct mn_relay_conn {
    struct mn_hub_client client; /* first: the hub's clients are our connections */
    struct mn_tls stream;
    struct mn_timer timer;
    uint64_t id;
    uint8_t phase, role;
    bool is_pending;   /* on the list of those not logged in */
    bool is_half_open; /* on the list of those whose handshake is under way */
    bool is_inside;    /* watched with the clients, not in the lobby */
    bool is_announced; /* Python knows it: it hears of the end */
    bool is_waiting;   /* for Python: nothing is read */
    bool is_throttled; /* it has sent more than its rate */
    bool has_websocket, acks_pings, is_adopted, is_guarded, was_pinged;
    uint32_t events; /* that epoll watches */
    struct mn_frame_reader reader;
    uint32_t reads; /* since reads_since_ms, as far as they are counted */
    uint64_t reads_since_ms;
    uint64_t accepted_ms, heard_ms, keep_alive_at_ms, stalled_ms, refill_at_ms;
    uint64_t ends_by_ms; /* 0: the lobby sees to it, or it is open */
    int64_t tokens;
    uint64_t rate, burst;
    struct mn_websocket *websocket;
    struct mn_relay_conn *prev_pending, *next_pending, *prev_half_open, *next_half_open;
    struct mn_relay_conn *next_dead, *next_id;
};

enum mn_relay_command_kind {
    MN_RELAY_CMD_TLS = 1,
    MN_RELAY_CMD_LISTEN,
    MN_RELAY_CMD_UNLISTEN,
    MN_RELAY_CMD_ADOPT,
    MN_RELAY_CMD_WRITE,
    MN_RELAY_CMD_RESUME,
    MN_RELAY_CMD_WEBSOCKET,
    MN_RELAY_CMD_OPEN,
    MN_RELAY_CMD_CLOSE,
    MN_RELAY_CMD_CLOSE_KEY,
    MN_RELAY_CMD_TELL,
    MN_RELAY_CMD_STATS,
    MN_RELAY_CMD_CLIENTS,
};

struct mn_relay_command {
    struct mn_relay_command *next;
    uint8_t kind;
    bool flag;
    uint32_t number;
    int fd;
    uint64_t conn;
    SSL_CTX *ctx;
    void *out;
    uint8_t key[MN_RELAY_KEY];
    size_t len, greeting_len; /* the greeting is the beginning of data */
    uint8_t data[];
};

/* talk.c: both queues between the thread and everybody else. */
struct mn_relay_talk {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    int event_fd, command_fd;
    struct mn_relay_event *events, **events_end;
    struct mn_relay_command *commands, **commands_end;
    bool is_signalled, is_dirty, is_over;
};

struct mn_relay_listener {
    int fd;
    bool has_tls;
    uint8_t role; /* told to Python */
};

struct mn_relay {
    struct mn_relay_config cfg;
    struct mn_relay_talk talk;
    struct mn_hub hub;
    struct mn_guard guard;
    struct mn_wheel wheel;
    struct mn_wires wires;
    uint8_t *plain, *batch;
    SSL_CTX *ctx;
    struct mn_relay_conn **by_id; /* ids count up, so they spread by themselves */
    uint32_t by_id_size;
    struct mn_relay_conn *pending_first, *pending_last, *half_open_first, *half_open_last, *dead;
    struct mn_relay_listener listeners[MN_RELAY_LISTENERS];
    struct mn_relay_stats stats;
    uint64_t now_ns, now_ms, random;
    uint64_t accept_again_ms; /* 0: accepting */
    int epoll_fd, lobby_fd, spare_fd;
    atomic_bool is_started;
    pthread_t thread;
    atomic_bool wants_stop;
    atomic_uint_fast64_t ids;
};

uint64_t mn_relay_clock_ns(void);

/* lobby.c: those who are not logged in */
void mn_lobby_enter(struct mn_relay *r, struct mn_relay_conn *c);
void mn_lobby_note_shaken(struct mn_relay *r, struct mn_relay_conn *c);
void mn_lobby_leave(struct mn_relay *r, struct mn_relay_conn *c);
bool mn_lobby_listen(struct mn_relay *r, int fd, bool has_tls, uint8_t role);
void mn_lobby_unlisten(struct mn_relay *r);
void mn_lobby_serve(struct mn_relay *r);     /* what is ready, for a bounded time */
void mn_lobby_keep_time(struct mn_relay *r); /* every turn */
uint64_t mn_lobby_next_ms(const struct mn_relay *r);

/* talk.c */
int mn_talk_init(struct mn_relay_talk *t);
void mn_talk_destroy(struct mn_relay_talk *t);
/* data may be NULL when len is 0. NULL: no memory. */
struct mn_relay_event *mn_talk_event(uint8_t kind, const uint8_t *data, size_t len);
void mn_talk_post(struct mn_relay_talk *t, struct mn_relay_event *ev);
void mn_talk_signal(struct mn_relay_talk *t); /* once a turn */
int mn_talk_push(struct mn_relay_talk *t, const struct mn_relay_command *like, const uint8_t *data, size_t len);
struct mn_relay_command *mn_talk_commands(struct mn_relay_talk *t);

/* commands.c */
void mn_relay_run_commands(struct mn_relay *r);

/* conn.c: life */
struct mn_relay_conn *mn_relay_conn_accept(struct mn_relay *r, int fd, const struct mn_relay_listener *l,
                                           const struct mn_ep *source);
struct mn_relay_conn *mn_relay_conn_adopt(struct mn_relay *r, int fd, SSL_CTX *ctx, const char *host, uint64_t id);
struct mn_relay_conn *mn_relay_conn_of(const struct mn_relay *r, uint64_t id);
void mn_relay_conn_stop(struct mn_relay *r, struct mn_relay_conn *c, enum mn_relay_why why);
void mn_relay_conn_free_dead(struct mn_relay *r);
void mn_relay_conn_start_frames(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_relay_command *cmd);
void mn_relay_conn_watch(struct mn_relay *r, struct mn_relay_conn *c);
void mn_relay_conn_arm(struct mn_relay *r, struct mn_relay_conn *c);
void mn_relay_conn_on_timer(struct mn_relay *r, struct mn_relay_conn *c);

/* input.c: what arrives */
void mn_relay_conn_serve(struct mn_relay *r, uint64_t id, uint32_t events);
void mn_relay_conn_take_frames(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n);

/* output.c: what leaves */
void mn_relay_conn_on_writable(struct mn_relay *r, struct mn_relay_conn *c);
void mn_relay_conn_send_raw(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n);
void mn_relay_conn_flush_dirty(struct mn_relay *r);

#endif
