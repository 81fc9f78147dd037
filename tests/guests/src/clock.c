/*
 * clock SECONDS: read the real-time clock of the kernel (date), its uptime, its monotonic
 * clock and the TSC at the turn of an RTC second and again SECONDS later, and compare how
 * far each has come. Prints the differences in milliseconds and the TSC's rate in kHz, and
 * exits 1 if one of them is out of tolerance.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct reading {
	double rtc, real, mono, uptime;	/* seconds */
	uint64_t tsc;
};

static double seconds(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double read_number(const char *path, const char *key)
{
	char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	const char *at = strstr(text, key);
	if (!at)
		return -1;
	at += strlen(key);
	return strtod(at + strspn(at, "\t :"), NULL);
}

/* At the turn of an RTC second; without an RTC, at once. */
static struct reading take(void)
{
	const char *path = "/sys/class/rtc/rtc0/since_epoch";
	struct reading r = { .rtc = read_number(path, "") };
	double before = r.rtc, give_up = seconds(CLOCK_MONOTONIC) + 5;

	while (before >= 0 && r.rtc == before && seconds(CLOCK_MONOTONIC) < give_up) {
		nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
		r.rtc = read_number(path, "");
	}
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	r.tsc = (uint64_t)high << 32 | low;
	r.mono = seconds(CLOCK_MONOTONIC);
	r.real = seconds(CLOCK_REALTIME);
	r.uptime = read_number("/proc/uptime", "");
	return r;
}

static int bad;

/* The difference from the monotonic clock's time, against an absolute and a relative tolerance. */
static void compare(const char *name, double elapsed, double mono, double tolerance)
{
	double difference = elapsed - mono;
	tolerance += mono * 0.001;
	if (difference > tolerance || difference < -tolerance)
		bad = 1;
	printf("%s=%+.1f ", name, difference * 1e3);
}

int main(int argc, char **argv)
{
	int wait = argc > 1 ? atoi(argv[1]) : 5;
	struct reading a = take();
	/* take() waits for the rest of the last second. */
	nanosleep(&(struct timespec){ .tv_sec = wait - 1, .tv_nsec = 500000000 }, NULL);
	struct reading b = take();
	double mono = b.mono - a.mono;

	printf("mono=%.1f ", mono * 1e3);
	compare("date", b.real - a.real, mono, 0.005);
	compare("uptime", b.uptime - a.uptime, mono, 0.025);
	if (a.rtc >= 0)
		compare("rtc", b.rtc - a.rtc, mono, 0.050);
	/* With no frequency driver the kernel shows the rate that it has calibrated. */
	double mhz = read_number("/proc/cpuinfo", "cpu MHz");
	compare("tsc", (b.tsc - a.tsc) / (mhz * 1e6), mono, 0.005);
	printf("tsc_khz=%.0f kernel_khz=%.0f\n", (b.tsc - a.tsc) / mono / 1e3, mhz * 1e3);
	return bad;
}
