/*
 * sound mixer PERCENT            every control of the first card that is a number to so much of its range, every switch
 *                                on; 0 mutes
 * sound play RATE PERIOD FRAMES  by /dev/dsp: a triangle wave, on both channels, of PERIOD frames each, a multiple of 4
 * sound record RATE FRAMES       by /dev/dsp: frames that count, the low 15 bits at the left and the rest at the right
 *
 * record prints `HEARD first=N frames=N breaks=N`: the first number, how many came, and how often the next was not
 * one more. Exits 1 if a call fails, and says which.
 */
#include <errno.h>
#include <fcntl.h>
#include <sound/asound.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/soundcard.h>
#include <unistd.h>

static int16_t frames[1024][2];

static int check(int result, const char *what)
{
	if (result < 0) {
		printf("sound: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

static void mixer(long percent)
{
	static struct snd_ctl_elem_id ids[64];
	struct snd_ctl_elem_list list = { .space = 64, .pids = ids };
	int fd = check(open("/dev/snd/controlC0", O_RDWR), "controlC0");
	check(ioctl(fd, SNDRV_CTL_IOCTL_ELEM_LIST, &list), "list");
	for (unsigned n = 0; n < list.used; n++) {
		struct snd_ctl_elem_info info = { .id = ids[n] };
		struct snd_ctl_elem_value value = { .id = ids[n] };
		check(ioctl(fd, SNDRV_CTL_IOCTL_ELEM_INFO, &info), "info");
		if (!(info.access & SNDRV_CTL_ELEM_ACCESS_WRITE))
			continue;
		for (unsigned i = 0; i < info.count; i++) {
			long span = info.value.integer.max - info.value.integer.min;
			if (info.type == SNDRV_CTL_ELEM_TYPE_BOOLEAN)
				value.value.integer.value[i] = percent > 0;
			else if (info.type == SNDRV_CTL_ELEM_TYPE_INTEGER)
				value.value.integer.value[i] = info.value.integer.min + span * percent / 100;
		}
		if (info.type == SNDRV_CTL_ELEM_TYPE_BOOLEAN || info.type == SNDRV_CTL_ELEM_TYPE_INTEGER) {
			check(ioctl(fd, SNDRV_CTL_IOCTL_ELEM_WRITE, &value), "write");
			printf("MIXER %s\n", info.id.name);
		}
	}
}

static int dsp(int flags, int rate)
{
	int fd = check(open("/dev/dsp", flags), "/dev/dsp"), format = AFMT_S16_LE, channels = 2;
	check(ioctl(fd, SNDCTL_DSP_SETFMT, &format), "format");
	check(ioctl(fd, SNDCTL_DSP_CHANNELS, &channels), "channels");
	check(ioctl(fd, SNDCTL_DSP_SPEED, &rate), "speed");
	printf("DSP rate=%d channels=%d format=%d\n", rate, channels, format);
	return fd;
}

/* From 0 up to 30000, down to -30000 and back. */
static int16_t triangle(long at, long period)
{
	long quarter = period / 4, within = at % period, step = 30000 / quarter;
	if (within <= quarter)
		return within * step;
	if (within <= 3 * quarter)
		return (2 * quarter - within) * step;
	return (within - period) * step;
}

static void play(int rate, long period, long count)
{
	int fd = dsp(O_WRONLY, rate);
	for (long at = 0; at < count;) {
		int n = 0;
		for (; n < 1024 && at < count; n++, at++)
			frames[n][0] = frames[n][1] = triangle(at, period);
		check(write(fd, frames, n * sizeof *frames) == (ssize_t)(n * sizeof *frames) ? 0 : -1, "write");
	}
	check(ioctl(fd, SNDCTL_DSP_SYNC, 0), "sync");
	close(fd);
	printf("PLAYED %ld\n", count);
}

static void record(int rate, long count)
{
	int fd = dsp(O_RDONLY, rate);
	long first = -1, last = 0, breaks = 0, got = 0;
	while (got < count) {
		int bytes = check(read(fd, frames, sizeof frames), "read");
		for (int n = 0; n < bytes / (int)sizeof *frames; n++, got++) {
			long number = frames[n][0] | (long)frames[n][1] << 15;
			if (first < 0)
				first = number;
			else
				breaks += number != last + 1;
			last = number;
		}
	}
	close(fd);
	printf("HEARD first=%ld frames=%ld breaks=%ld\n", first, got, breaks);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "mixer"))
		mixer(atol(argv[2]));
	else if (argc == 5 && !strcmp(argv[1], "play"))
		play(atoi(argv[2]), atol(argv[3]), atol(argv[4]));
	else if (argc == 4 && !strcmp(argv[1], "record"))
		record(atoi(argv[2]), atol(argv[3]));
	else
		return 2;
	return 0;
}
