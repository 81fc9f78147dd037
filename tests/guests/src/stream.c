/*
 * stream BYTES: that many bytes of xorshift64 (shifts 13, 7, 17, seed 88172645463325252),
 * each number in little-endian order, on stdout. The host computes the same stream.
 */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static unsigned char buffer[32768];
	unsigned long left = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	uint64_t x = 88172645463325252u;

	while (left > 0) {
		size_t size = left < sizeof buffer ? left : sizeof buffer;
		for (size_t i = 0; i < sizeof buffer; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			for (int byte = 0; byte < 8; byte++)
				buffer[i + byte] = x >> (8 * byte);
		}
		for (size_t done = 0; done < size;) {
			ssize_t n = write(STDOUT_FILENO, buffer + done, size - done);
			if (n <= 0)
				return 1;
			done += n;
		}
		left -= size;
	}
	return 0;
}
