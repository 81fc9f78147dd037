/*
 * diskspeed DEVICE read|write|random BLOCK COUNT DEPTH: COUNT transfers of BLOCK bytes past the page cache, DEPTH of
 * them under way at a time, one after the other from the disk's first byte on, or reads at random. Says in a line how
 * long it took.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 64

static uint64_t x = 88172645463325252u;

static uint64_t any(void)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static int fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000u + t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	struct iocb cbs[MOST], *one;
	struct io_event events[MOST];
	aio_context_t context = 0;
	uint64_t size, blocks, from;
	long block, count, depth, issued = 0, done = 0, n, i;
	int write, random, fd;
	char *memory;

	if (argc != 6 || (block = atol(argv[3])) <= 0 || (depth = atol(argv[5])) < 1 || depth > MOST)
		return fail("arguments");
	write = !strcmp(argv[2], "write");
	random = !strcmp(argv[2], "random");
	count = atol(argv[4]);
	fd = open(argv[1], (write ? O_RDWR : O_RDONLY) | O_DIRECT);
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
		return fail(argv[1]);
	blocks = size / block;
	memory = mmap(NULL, block * depth, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED || !blocks || syscall(SYS_io_setup, depth, &context))
		return fail("io_setup");
	for (i = 0; i < block * depth / 8; i++)
		((uint64_t *)memory)[i] = any();

	from = now_us();
	memset(cbs, 0, sizeof cbs);
	for (i = 0; i < depth; i++) {
		events[i].data = i;
		cbs[i].aio_fildes = fd;
		cbs[i].aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
		cbs[i].aio_buf = (uintptr_t)(memory + i * block);
		cbs[i].aio_nbytes = block;
		cbs[i].aio_data = i;
	}
	for (n = depth; done < count;) {
		for (i = 0; i < n && issued < count; i++, issued++) {
			one = &cbs[events[i].data];
			one->aio_offset = (random ? any() : (uint64_t)issued) % blocks * block;
			if (syscall(SYS_io_submit, context, 1, &one) != 1)
				return fail("io_submit");
		}
		n = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
		if (n < 1)
			return fail("io_getevents");
		for (i = 0; i < n; i++)
			if (events[i].res != block)
				return fail("a transfer failed");
		done += n;
	}
	printf("transfers=%ld bytes=%ld us=%llu\n", count, block, (unsigned long long)(now_us() - from));
	return 0;
}
