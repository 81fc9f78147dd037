/*
 * floppy info DEVICE: what the driver has found out about the drive and the medium, in a line.
 * floppy format DEVICE: formats all tracks, as fdformat(8) does; the driver names the sectors.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static int info(int fd)
{
	struct floppy_struct medium;
	struct floppy_drive_struct drive;
	struct floppy_fdc_state fdc;
	floppy_drive_name type;

	if (ioctl(fd, FDGETPRM, &medium) || ioctl(fd, FDPOLLDRVSTAT, &drive) || ioctl(fd, FDGETFDCSTAT, &fdc) ||
		ioctl(fd, FDGETDRVTYP, type))
		return fail("ioctl");
	printf("chip=%x drive=%s medium=%ux%ux%u rate=%u writable=%d\n", fdc.version, type, medium.track, medium.head,
		medium.sect, medium.rate & 3, (drive.flags & FD_DISK_WRITABLE) != 0);
	return 0;
}

static int format(int fd)
{
	struct floppy_struct medium;
	struct format_descr track = { 0 };

	if (ioctl(fd, FDGETPRM, &medium))
		return fail("FDGETPRM");
	if (ioctl(fd, FDFMTBEG, NULL))
		return fail("FDFMTBEG");
	for (track.track = 0; track.track < medium.track; track.track++)
		for (track.head = 0; track.head < medium.head; track.head++)
			if (ioctl(fd, FDFMTTRK, &track))
				return fail("FDFMTTRK");
	if (ioctl(fd, FDFMTEND, NULL))
		return fail("FDFMTEND");
	return 0;
}

int main(int argc, char **argv)
{
	int fd = argc == 3 ? open(argv[2], O_RDWR) : -1;

	if (fd < 0 && argc == 3)
		fd = open(argv[2], O_RDONLY);
	if (fd < 0)
		return fail("open");
	return strcmp(argv[1], "format") ? info(fd) : format(fd);
}
