/*
 * traffic stream ADDRESS PORT out|in|both BYTES: that many bytes of stream.c's numbers by TCP, out to the peer, in from
 * it, or both ways at once. Each side compares what it gets with what it should be.
 * traffic frames ADDRESS PORT COUNT MOST: datagrams of random sizes and contents of up to MOST bytes, which the peer
 * sends back, several of them under way at a time; each must come back once and as it was.
 * traffic group ADDRESS PORT GROUP INTERFACE: joins a multicast group, asks the peer to send ten datagrams there, and
 * leaves it again.
 * All three fail when nothing comes for twenty seconds; the status is 3 when there is no way to the peer.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 20000
#define FLYING 8
#define BLOCK 32768

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Bytes BLOCK by BLOCK, as stream.c makes them. */
struct numbers {
	uint64_t x;
	unsigned char bytes[BLOCK];
	size_t used;
};

static void start(struct numbers *n)
{
	n->x = 88172645463325252u;
	n->used = BLOCK;
}

static void more(struct numbers *n)
{
	if (n->used < BLOCK)
		return;
	/* x86 only, and so little-endian. */
	for (size_t i = 0; i < BLOCK; i += 8) {
		uint64_t number = next(&n->x);
		memcpy(n->bytes + i, &number, 8);
	}
	n->used = 0;
}

static void fail(const char *what)
{
	printf("traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int reach(const char *address, const char *port, int type)
{
	struct sockaddr_in six_or_four = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
	struct sockaddr *to = (struct sockaddr *)&six;
	socklen_t length = sizeof six;
	int fd;

	if (inet_pton(AF_INET6, address, &six.sin6_addr) != 1) {
		if (inet_pton(AF_INET, address, &six_or_four.sin_addr) != 1) {
			printf("traffic: %s is no address\n", address);
			exit(2);
		}
		to = (struct sockaddr *)&six_or_four;
		length = sizeof six_or_four;
	}
	fd = socket(to->sa_family, type, 0);
	if (fd < 0 || connect(fd, to, length) < 0) {
		printf("traffic: connect: %s\n", strerror(errno));
		exit(3);
	}
	return fd;
}

/* Waits for one of the events; none in time is the end. */
static short ready(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	if (poll(&p, 1, PATIENCE_MS) <= 0) {
		printf("traffic: nothing for %d ms\n", PATIENCE_MS);
		exit(1);
	}
	return p.revents;
}

static int stream(const char *address, const char *port, const char *way, uint64_t bytes)
{
	static struct numbers out, in;
	static unsigned char buffer[BLOCK];
	uint64_t sends = strcmp(way, "in") ? bytes : 0, takes = strcmp(way, "out") ? bytes : 0;
	uint64_t order[2] = { sends, takes };
	long begun = now_ms(), last = begun, gap = 0;
	char verdict;
	int fd = reach(address, port, SOCK_STREAM);

	start(&out);
	start(&in);
	/* How much the peer gets and how much it gives. */
	if (write(fd, order, sizeof order) != sizeof order)
		fail("write");
	while (sends > 0 || takes > 0) {
		short events = ready(fd, (sends > 0 ? POLLOUT : 0) | (takes > 0 ? POLLIN : 0));
		long now = now_ms();

		if (now - last > gap)
			gap = now - last;
		last = now;
		if (events & (POLLERR | POLLHUP) && !(events & POLLIN)) {
			printf("traffic: the connection broke\n");
			return 1;
		}
		if (events & POLLOUT) {
			ssize_t n;

			more(&out);
			n = BLOCK - out.used;
			if ((uint64_t)n > sends)
				n = sends;
			n = send(fd, out.bytes + out.used, n, MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n < 0 && errno != EAGAIN)
				fail("send");
			if (n > 0) {
				out.used += n;
				sends -= n;
			}
		}
		if (events & POLLIN) {
			ssize_t n = recv(fd, buffer, takes < BLOCK ? takes : BLOCK, MSG_DONTWAIT);

			if (n == 0 || (n < 0 && errno != EAGAIN))
				fail("receive");
			for (ssize_t done = 0; done < n;) {
				size_t part;

				more(&in);
				part = BLOCK - in.used;
				if (part > (size_t)(n - done))
					part = n - done;
				if (memcmp(buffer + done, in.bytes + in.used, part)) {
					printf("traffic: other bytes, %llu before the end\n", (unsigned long long)takes);
					return 1;
				}
				in.used += part;
				takes -= part;
				done += part;
			}
		}
	}
	ready(fd, POLLIN);
	if (read(fd, &verdict, 1) != 1 || verdict != 'y') {
		printf("traffic: the peer got other bytes\n");
		return 1;
	}
	printf("%s-ms=%ld gap-ms=%ld\n", way, now_ms() - begun, gap);
	return 0;
}

static int frames(const char *address, const char *port, unsigned count, unsigned most)
{
	static unsigned char sent[FLYING][65536], got[65536];
	unsigned sizes[FLYING] = { 0 }, begun = 0, flying = 0;
	uint64_t x = 88172645463325252u;
	int fd = reach(address, port, SOCK_DGRAM);

	while (begun < count || flying > 0) {
		ssize_t n;
		uint32_t number;

		while (begun < count && flying < FLYING && sizes[begun % FLYING] == 0) {
			unsigned slot = begun % FLYING, size = 4 + next(&x) % (most - 3);
			uint64_t y = next(&x);

			for (unsigned i = 4; i < size; i++)
				sent[slot][i] = next(&y) >> 32;
			memcpy(sent[slot], &begun, 4);
			if (send(fd, sent[slot], size, 0) != (ssize_t)size)
				fail("send");
			sizes[slot] = size;
			begun++;
			flying++;
		}
		ready(fd, POLLIN);
		n = recv(fd, got, sizeof got, 0);
		if (n < 4)
			fail("receive");
		memcpy(&number, got, 4);
		if (sizes[number % FLYING] != (unsigned)n || memcmp(got, sent[number % FLYING], n)) {
			printf("traffic: frame %u came back otherwise, with %zd bytes\n", number, n);
			return 1;
		}
		sizes[number % FLYING] = 0;
		flying--;
	}
	printf("frames=%u\n", count);
	return 0;
}

static int group(const char *address, const char *port, const char *group, const char *interface)
{
	struct group_req request = { .gr_interface = if_nametoindex(interface) };
	struct sockaddr_in six_or_four = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
	int is_six = inet_pton(AF_INET6, group, &six.sin6_addr) == 1;
	int listener = socket(is_six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0), level = is_six ? IPPROTO_IPV6 : IPPROTO_IP;
	int fd = reach(address, port, SOCK_DGRAM);
	char text[64];

	if (is_six) {
		if (bind(listener, (struct sockaddr *)&six, sizeof six) < 0)
			fail("bind");
		memcpy(&request.gr_group, &six, sizeof six);
	} else {
		inet_pton(AF_INET, group, &six_or_four.sin_addr);
		if (bind(listener, (struct sockaddr *)&six_or_four, sizeof six_or_four) < 0)
			fail("bind");
		memcpy(&request.gr_group, &six_or_four, sizeof six_or_four);
	}
	if (setsockopt(listener, level, MCAST_JOIN_GROUP, &request, sizeof request) < 0)
		fail("join");
	if (send(fd, group, strlen(group), 0) < 0)
		fail("send");
	for (int n = 0; n < 10; n++) {
		ready(listener, POLLIN);
		if (recv(listener, text, sizeof text, 0) != 1 || text[0] != n) {
			printf("traffic: datagram %d to the group is another\n", n);
			return 1;
		}
	}
	if (setsockopt(listener, level, MCAST_LEAVE_GROUP, &request, sizeof request) < 0)
		fail("leave");
	printf("group=%s\n", group);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "stream"))
		return stream(argv[2], argv[3], argv[4], strtoull(argv[5], NULL, 10));
	if (argc == 6 && !strcmp(argv[1], "frames"))
		return frames(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]));
	if (argc == 6 && !strcmp(argv[1], "group"))
		return group(argv[2], argv[3], argv[4], argv[5]);
	return 2;
}
