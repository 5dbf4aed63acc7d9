/* Runs every script of scripts/, or those named on the command line: what the stack does segment by segment, at its
 * time (T-01 ... T-27). */
#include <dirent.h>
#include <libgen.h>

#include "script.h"

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_script(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > 4 && strcmp(d->d_name + n - 4, ".pkt") == 0;
}

static void run_file(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    printf("%s\n", path);
    fflush(stdout);
    script_run_text(path, file);
    fclose(file);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            run_file(argv[i]);
        return 0;
    }
    char here[] = __FILE__, folder[512], path[1024];
    snprintf(folder, sizeof folder, "%s/scripts", dirname(here));
    struct dirent **names;
    int n = scandir(folder, &names, is_script, by_name);
    CHECK(n > 0);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        run_file(path);
        free(names[i]);
    }
    free(names);
    printf("%d scripts\n", n);
    return 0;
}
