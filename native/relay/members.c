/* Connections that come and go, several of one key, and which of them is the live one. */
#include "hub_internal.h"

static const char FIGHT_TEXT[] = "another connection uses this node's key; was its state directory copied?";

static void link_live(struct mn_hub_key *k, struct mn_hub_client *c)
{
    c->prev = NULL;
    c->next = k->live;
    if (k->live != NULL)
        k->live->prev = c;
    k->live = c;
}

static void unlink_conn(struct mn_hub_key *k, struct mn_hub_client *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        k->live = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    c->prev = c->next = NULL;
}

static void tell_fight(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    mn_hub_tell(h, c, MN_FRAME_HEALTH, (const uint8_t *)FIGHT_TEXT, sizeof FIGHT_TEXT - 1, now_ms);
}

bool mn_hub_join(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    c->gone_left = MN_HUB_GONE_BURST;
    c->gone_at_ms = c->joined_ms = now_ms;
    c->is_joined = true;
    h->stats.clients++;
    if (c->is_neighbour)
        return true; /* reached by its routes alone, not by a key */
    struct mn_hub_key *k = mn_hub_key_need(h, c->key);
    if (k == NULL) {
        c->is_joined = false;
        h->stats.clients--;
        return false;
    }
    mn_hub_key_count(h, k, -1);
    c->entry = k;
    link_live(k, c);
    if (++k->conns > 1)
        h->stats.dup_conns_total++;
    mn_hub_key_count(h, k, 1);
    h->stats.not_ideal += (c->flags & MN_PRESENT_NOT_IDEAL) != 0;
    for (struct mn_hub_client *w = h->watchers; w != NULL; w = w->next_watcher)
        mn_hub_tell_present(h, w, c, now_ms);
    if (k->is_fighting)
        tell_fight(h, c, now_ms);
    return true;
}

/* One connection is left. */
static void end_fight(struct mn_hub *h, struct mn_hub_key *k, uint32_t now_ms)
{
    if (k->is_fighting)
        mn_hub_tell(h, k->live, MN_FRAME_HEALTH, NULL, 0, now_ms);
    k->is_fighting = false;
    k->changes = 0;
}

static void leave_key(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    struct mn_hub_key *k = c->entry;
    mn_hub_key_count(h, k, -1);
    unlink_conn(k, c);
    k->conns--;
    c->entry = NULL;
    mn_hub_key_count(h, k, 1);
    for (struct mn_hub_client *w = h->watchers; w != NULL && k->conns == 0; w = w->next_watcher)
        mn_hub_tell_gone(h, w, k->key, MN_GONE_DISCONNECTED, now_ms);
    if (k->conns == 1)
        end_fight(h, k, now_ms);
    if (k->conns == 0 && k->routes == NULL)
        mn_hub_key_drop(h, k, now_ms);
}

void mn_hub_leave(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    if (!c->is_joined)
        return;
    c->is_joined = false;
    h->stats.clients--;
    h->stats.homes -= c->is_home;
    mn_hub_unwatch(h, c);
    while (c->met != NULL)
        mn_hub_met_remove(h, c->met);
    h->stats.drop_gone_disconnected += c->data.count;
    if (c->is_neighbour) {
        mn_hub_drop_routes(h, c, now_ms);
    } else {
        h->stats.not_ideal -= (c->flags & MN_PRESENT_NOT_IDEAL) != 0;
        leave_key(h, c, now_ms);
    }
    mn_lane_clear(&c->urgent, &h->chunks);
    mn_lane_clear(&c->data, &h->chunks);
    mn_hub_undirty(h, c);
}

void mn_hub_note_activity(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    struct mn_hub_key *k = c->entry;
    if (k == NULL || k->live == c)
        return;
    unlink_conn(k, c);
    link_live(k, c);
    if (k->is_fighting || ++k->changes < MN_HUB_FIGHT_CHANGES)
        return;
    k->is_fighting = true;
    h->stats.fights++;
    for (struct mn_hub_client *each = k->live; each != NULL; each = each->next)
        tell_fight(h, each, now_ms);
}

void mn_hub_set_home(struct mn_hub *h, struct mn_hub_client *c, bool is_home, uint32_t now_ms)
{
    bool is_move = now_ms - c->joined_ms >= MN_HUB_MOVE_AFTER_MS;
    if (c->is_home == is_home)
        return;
    c->is_home = is_home;
    if (is_home) {
        h->stats.homes++;
        h->stats.home_moves_in += is_move;
    } else {
        h->stats.homes--;
        h->stats.home_moves_out += is_move;
    }
}
