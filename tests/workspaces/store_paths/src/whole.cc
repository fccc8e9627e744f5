extern "C" {
#include "src/half.h"
int puts(const char *text);
}

int main() { return puts("whole by " COMPILER) < 0 || puts(compiler_of_half()) < 0; }
