/* Feeds each file named on the command line to a fuzz target once: corpora under any compiler. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { INPUT_MAX = 1 << 20 };

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (f == NULL) {
            perror(argv[i]);
            return 1;
        }
        uint8_t *buf = malloc(INPUT_MAX);
        size_t n = buf == NULL ? 0 : fread(buf, 1, INPUT_MAX, f);
        fclose(f);
        /* An exact-size copy, so that a sanitizer sees a read past the end. */
        uint8_t *exact = malloc(n > 0 ? n : 1);
        for (size_t k = 0; exact != NULL && k < n; k++)
            exact[k] = buf[k];
        free(buf);
        if (exact != NULL)
            LLVMFuzzerTestOneInput(exact, n);
        free(exact);
    }
    return 0;
}
