// floor does what the kernel has to do for an image, and nothing else: no checks, no journal, no supervisor, no undo.
// What it takes is what nothing that does the same can be faster than.
//
// floor DIR CGROUP reads commands from its standard input, one a line, and answers each with a line: the nanoseconds
// that it took, or for "boot" the time at which it began (CLOCK_REALTIME), or what failed. DIR holds image.squashfs and
// root, the same tree as a directory. CGROUP is a directory of cgroup2, below which it makes others.
//
//	loop             a loop device for the image, and away with it
//	bind             a bind of root, and away with it
//	squashfs         squashfs on a loop device that is there, and away with it
//	overlay          an overlay of root with a tmpfs above it, and away with it
//	boot PROGRAM...  loop device, squashfs, overlay, a container of it that runs PROGRAM
//	stop             SIGTERM to it, its end, and all away
//	up, down         the same mounts without a container
//	run              a container of root that runs /bin/true to its end
//	parallel N       N at a time of what boot does, until all have executed /bin/sleep; then, untimed, all away
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOVE_F_EMPTY 0x4
#define MOVE_T_EMPTY 0x40
#define UMOUNT_LAZY 2

static int work, group;

static void die(const char *what) {
	printf("failed: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static int must(long result, const char *what) {
	if (result < 0)
		die(what);
	return (int)result;
}

static long now(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int sys_open_tree(int dir, const char *path, unsigned flags) { return syscall(SYS_open_tree, dir, path, flags); }
static int sys_umount(const char *path, int flags) { return syscall(SYS_umount2, path, flags); }

static int move_mount_to(int mount, int dir, const char *path) {
	return syscall(SYS_move_mount, mount, "", dir, path, MOVE_F_EMPTY | (*path ? 0 : MOVE_T_EMPTY));
}

// file system contexts

static int fs_open(const char *type) { return must(syscall(SYS_fsopen, type, 1), type); }
static void fs_set(int fs, const char *key, const char *value) { must(syscall(SYS_fsconfig, fs, 1, key, value, 0), key); }
static void fs_set_fd(int fs, const char *key, int fd) { must(syscall(SYS_fsconfig, fs, 5, key, NULL, fd), key); }
static void fs_flag(int fs, const char *key) { must(syscall(SYS_fsconfig, fs, 0, key, NULL, 0), key); }

static int fs_mount(int fs, unsigned attrs) {
	must(syscall(SYS_fsconfig, fs, 6, NULL, NULL, 0), "create the file system");
	int mount = must(syscall(SYS_fsmount, fs, 1, attrs), "fsmount");
	close(fs);
	return mount;
}

// a stack: loop device, squashfs, overlay

struct stack {
	int number;
	char image[64], over[64]; // relative to work
};

static int loop_attach(int *number) {
	int file = must(openat(work, "image.squashfs", O_RDONLY | O_CLOEXEC), "image.squashfs");
	int control = must(open("/dev/loop-control", O_RDWR | O_CLOEXEC), "/dev/loop-control");
	for (;;) {
		char path[32];
		*number = must(ioctl(control, LOOP_CTL_GET_FREE), "LOOP_CTL_GET_FREE");
		snprintf(path, sizeof path, "/dev/loop%d", *number);
		int device = must(open(path, O_RDWR | O_CLOEXEC), path);
		struct loop_config config = {.fd = file, .info = {.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO}};
		if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
			close(control);
			close(file);
			return device;
		}
		if (errno != EBUSY)
			die("LOOP_CONFIGURE");
		close(device);
	}
}

static void loop_detach(int number) {
	char path[32];
	snprintf(path, sizeof path, "/dev/loop%d", number);
	int device = must(open(path, O_RDONLY | O_CLOEXEC), path);
	must(ioctl(device, LOOP_CLR_FD), "LOOP_CLR_FD");
	close(device);
}

static int squashfs(int number) {
	char path[32];
	snprintf(path, sizeof path, "/dev/loop%d", number);
	int fs = fs_open("squashfs");
	fs_set(fs, "source", path);
	fs_flag(fs, "ro");
	return fs_mount(fs, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
}

static int overlay(int lower) {
	int fs = fs_open("tmpfs");
	int top = fs_mount(fs, 0);
	must(mkdirat(top, "upper", 0755), "mkdir upper");
	must(mkdirat(top, "work", 0700), "mkdir work");
	int upper = must(openat(top, "upper", O_PATH | O_DIRECTORY | O_CLOEXEC), "upper");
	int other = must(openat(top, "work", O_PATH | O_DIRECTORY | O_CLOEXEC), "work");
	fs = fs_open("overlay");
	fs_set_fd(fs, "lowerdir+", lower);
	fs_set_fd(fs, "upperdir", upper);
	fs_set_fd(fs, "workdir", other);
	fs_flag(fs, "volatile");
	int mount = fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	close(upper);
	close(other);
	close(top); // the overlay keeps the tmpfs
	return mount;
}

static void attach_at(int mount, const char *path) {
	must(mkdirat(work, path, 0700), path);
	must(move_mount_to(mount, work, path), path);
	close(mount);
}

static void detach_at(const char *path) {
	must(fchdir(work), "chdir");
	must(sys_umount(path, 0), path);
	must(unlinkat(work, path, AT_REMOVEDIR), path);
}

static void stack_up(struct stack *s, int name) {
	int device = loop_attach(&s->number);
	snprintf(s->image, sizeof s->image, "image.%d", name);
	snprintf(s->over, sizeof s->over, "over.%d", name);
	attach_at(squashfs(s->number), s->image);
	close(device);
	int lower = must(openat(work, s->image, O_PATH | O_DIRECTORY | O_CLOEXEC), s->image);
	attach_at(overlay(lower), s->over);
	close(lower);
}

static void stack_down(struct stack *s) {
	detach_at(s->over);
	detach_at(s->image);
	loop_detach(s->number);
}

// a container

static void kernel_fs(const char *type, int dir, const char *path, unsigned attrs) {
	int mount = fs_mount(fs_open(type), attrs);
	if (move_mount_to(mount, dir, path) < 0)
		die(path);
	close(mount);
}

static void inside(int tree, char **argv) {
	must(syscall(SYS_mount, "", "/", "", 0x4000 | 0x40000, ""), "make / private"); // MS_REC | MS_PRIVATE
	must(move_mount_to(tree, AT_FDCWD, "/proc"), "attach the root");               // any directory does
	unsigned safe = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	kernel_fs("proc", tree, "proc", safe);
	kernel_fs("sysfs", tree, "sys", safe | MOUNT_ATTR_RDONLY);
	kernel_fs("tmpfs", tree, "dev", MOUNT_ATTR_NOSUID);
	must(fchdir(tree), "chdir");
	must(chdir("dev"), "chdir dev");
	static const struct { const char *name; int major, minor; } nodes[] = {
	    {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
	for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
		must(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), "mknod");
	static const char *links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	    {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
	for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
		must(symlink(links[i][0], links[i][1]), "symlink");
	static const char *more[][2] = {{"devpts", "pts"}, {"tmpfs", "shm"}, {"mqueue", "mqueue"}};
	for (unsigned i = 0; i < sizeof more / sizeof *more; i++) {
		must(mkdir(more[i][1], 0755), "mkdir");
		kernel_fs(more[i][0], AT_FDCWD, more[i][1], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
	}
	must(fchdir(tree), "chdir");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(sys_umount(".", UMOUNT_LAZY), "detach the old root");
	must(chdir("/"), "chdir /");
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	execv(argv[0], argv);
	die(argv[0]);
}

// start runs argv in a container of the tree at path and returns its process; *dir is its cgroup.
static pid_t start(const char *path, char **argv, const char *name, int *dir) {
	int tree = must(sys_open_tree(work, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE), "open_tree");
	struct mount_attr relax = {.attr_clr = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
	must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &relax, sizeof relax), "mount_setattr");
	must(mkdirat(group, name, 0755), "mkdir cgroup");
	*dir = must(openat(group, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "cgroup");
	struct clone_args args = {
	    .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_INTO_CGROUP | CLONE_VFORK | CLONE_CLEAR_SIGHAND,
	    .exit_signal = SIGCHLD,
	    .cgroup = (uint64_t)*dir,
	};
	pid_t pid = must(syscall(SYS_clone3, &args, sizeof args), "clone3");
	if (pid == 0)
		inside(tree, argv); // CLONE_VFORK: the parent goes on when it has executed
	close(tree);
	return pid;
}

static void finish(pid_t pid, const char *name, int dir) {
	must(waitpid(pid, NULL, 0), "waitpid");
	close(dir);
	must(unlinkat(group, name, AT_REMOVEDIR), "rmdir cgroup");
}

static void run(void) {
	char *argv[] = {"/bin/true", NULL};
	int dir;
	pid_t pid = start("root", argv, "run", &dir);
	finish(pid, "run", dir);
}

static long parallel(int n) {
	int go[2], up[2], down[2];
	must(pipe(go), "pipe");
	must(pipe(up), "pipe");
	must(pipe(down), "pipe");
	for (int i = 0; i < n; i++) {
		if (must(fork(), "fork") > 0)
			continue;
		close(go[1]);
		close(down[1]);
		char name[16], byte = 0;
		snprintf(name, sizeof name, "p%d", i);
		if (read(go[0], &byte, 1) < 0)
			die("read");
		struct stack s;
		stack_up(&s, 1000 + i);
		char *argv[] = {"/bin/sleep", "1000", NULL};
		int dir;
		pid_t pid = start(s.over, argv, name, &dir);
		if (write(up[1], &byte, 1) != 1 || read(down[0], &byte, 1) < 0)
			die("pipe");
		kill(pid, SIGKILL);
		finish(pid, name, dir);
		stack_down(&s);
		_exit(0);
	}
	close(go[0]);
	close(down[0]);
	close(up[1]);
	long begin = now(CLOCK_MONOTONIC);
	close(go[1]);
	char byte;
	for (int i = 0; i < n; i++)
		if (read(up[0], &byte, 1) != 1)
			die("one in parallel");
	long took = now(CLOCK_MONOTONIC) - begin;
	close(down[1]);
	close(up[0]);
	for (int i = 0; i < n; i++)
		must(wait(NULL), "wait");
	return took;
}

int main(int argc, char **argv) {
	if (argc != 3) {
		fprintf(stderr, "floor: needs DIR CGROUP\n");
		return 2;
	}
	work = must(open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), argv[1]);
	group = must(open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC), argv[2]);
	must(fchdir(work), "chdir");
	struct stack s = {0};
	pid_t init = 0;
	int dir = -1;
	char line[4096];
	while (fgets(line, sizeof line, stdin)) {
		char *words[64];
		int n = 0;
		for (char *w = strtok(line, "\t\n"); w && n < 63; w = strtok(NULL, "\t\n"))
			words[n++] = w;
		words[n] = NULL;
		if (n == 0)
			continue;
		long real = now(CLOCK_REALTIME), begin = now(CLOCK_MONOTONIC), answer = 0;
		if (!strcmp(words[0], "loop")) {
			int number;
			close(loop_attach(&number));
			loop_detach(number);
		} else if (!strcmp(words[0], "bind")) {
			int tree = must(sys_open_tree(work, "root", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), "open_tree");
			struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
			must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr), "mount_setattr");
			attach_at(tree, "bind");
			detach_at("bind");
		} else if (!strcmp(words[0], "squashfs")) {
			int number, device = loop_attach(&number);
			begin = now(CLOCK_MONOTONIC);
			attach_at(squashfs(number), "squashfs");
			detach_at("squashfs");
			answer = now(CLOCK_MONOTONIC) - begin;
			close(device);
			loop_detach(number);
		} else if (!strcmp(words[0], "overlay")) {
			int lower = must(openat(work, "root", O_PATH | O_DIRECTORY | O_CLOEXEC), "root");
			attach_at(overlay(lower), "overlay");
			close(lower);
			detach_at("overlay");
		} else if (!strcmp(words[0], "boot")) {
			stack_up(&s, 0);
			init = start(s.over, words + 1, "boot", &dir);
			answer = real;
		} else if (!strcmp(words[0], "stop")) {
			kill(init, SIGTERM);
			finish(init, "boot", dir);
			stack_down(&s);
		} else if (!strcmp(words[0], "up")) {
			stack_up(&s, 0);
		} else if (!strcmp(words[0], "down")) {
			stack_down(&s);
		} else if (!strcmp(words[0], "run")) {
			run();
		} else if (!strcmp(words[0], "parallel") && n == 2) {
			answer = parallel(atoi(words[1]));
		} else {
			errno = EINVAL;
			die(words[0]);
		}
		if (answer == 0)
			answer = now(CLOCK_MONOTONIC) - begin;
		printf("%ld\n", answer);
		fflush(stdout);
	}
	return 0;
}
