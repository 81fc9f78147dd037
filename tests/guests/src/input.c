/*
 * input NAME KEY: open the input device whose name holds NAME, say so, and print its events until the key of this code
 * goes up. Pending events of a device that is opened are none of ours. Exits 1 if there is no such device.
 *
 *   INPUT NAME abs=MAXIMUM        it is open; the largest absolute X, 0 if there is none
 *   EV TYPE CODE VALUE            an event, those that end reports left out
 */
#include <fcntl.h>
#include <linux/input.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char path[32], name[256];
	int fd = -1;
	if (argc != 3)
		return 2;
	for (int n = 0; n < 32; n++) {
		snprintf(path, sizeof path, "/dev/input/event%d", n);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		memset(name, 0, sizeof name);
		if (ioctl(fd, EVIOCGNAME(sizeof name - 1), name) > 0 && strstr(name, argv[1]))
			break;
		close(fd);
		fd = -1;
	}
	if (fd < 0)
		return 1;
	struct input_absinfo x = { 0 };
	ioctl(fd, EVIOCGABS(ABS_X), &x);
	printf("INPUT %s abs=%d\n", argv[1], x.maximum);
	fflush(stdout);
	struct input_event e;
	while (read(fd, &e, sizeof e) == sizeof e) {
		if (e.type == EV_SYN || e.type == EV_MSC)
			continue;
		printf("EV %d %d %d\n", e.type, e.code, e.value);
		fflush(stdout);
		if (e.type == EV_KEY && e.code == atoi(argv[2]) && e.value == 0)
			return 0;
	}
	return 1;
}
