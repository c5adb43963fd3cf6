/* The part of cq.h that training and analysis call: passes over arrays, which have a name each and one signature. */
#ifndef CQ_TRAINING_H
#define CQ_TRAINING_H

/* An array that a pass works on: (rows, columns) of the call, one element per row, or one per column. use: it is read;
 * read and written; read where it is there, else NULL; or a result. format: of an element, in letters of Python's
 * struct. */
enum { CQ_MATRIX, CQ_PER_ROW, CQ_PER_COLUMN };
enum { CQ_READ = 0, CQ_WRITE = 1, CQ_MAYBE = 2, CQ_RESULT = 4 | CQ_WRITE };
typedef struct {
    const char *name;
    int axes, use;
    char format;
} cq_pass_array;

/* What a pass takes: arrays, up to the first without a name, results last, and so many numbers. training.c describes
 * every pass and names its numbers in their order. */
enum { CQ_PASS_ARRAYS = 8, CQ_PASS_NUMBERS = 8 }; /* at most */
typedef struct {
    const char *name;
    cq_pass_array arrays[CQ_PASS_ARRAYS];
    int numbers;
} cq_pass;
const cq_pass *cq_find_pass(const char *name); /* NULL where none is called so */

typedef struct {
    const cq_pass *what;
    void *arrays[CQ_PASS_ARRAYS];
    double numbers[CQ_PASS_NUMBERS];
    int64_t columns;
} cq_pass_args;
cq_call cq_run_pass;

/* Whether malloc keeps what is freed, for the whole process: a step of training makes and frees arrays of hundreds of
 * MB, and pages that went back to the system come anew one by one, zeroed. Off: they go back but for 64 MB, glibc's own
 * most. Does nothing with another C library. */
void cq_keep_freed(int on);
#endif
