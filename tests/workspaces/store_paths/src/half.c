#include "src/half.h"

const char *compiler_of_half(void) { return "half by " COMPILER; }
