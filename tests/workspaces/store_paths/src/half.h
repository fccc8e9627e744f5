const char *compiler_of_half(void);
