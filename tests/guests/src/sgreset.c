/* sgreset DEVICE: has the kernel reset a SCSI disk, which aborts its tasks. */
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef SG_SCSI_RESET_NO_ESCALATE
#define SG_SCSI_RESET_NO_ESCALATE 0x100
#endif

int main(int argc, char **argv)
{
	/* The disk alone; its bus and its adapter are left alone when it fails. */
	int what = SG_SCSI_RESET_DEVICE | SG_SCSI_RESET_NO_ESCALATE;
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_NONBLOCK) : -1;

	if (fd < 0 || ioctl(fd, SG_SCSI_RESET, &what) < 0) {
		perror("sgreset");
		return 1;
	}
	return 0;
}
