/*
 * What a test workload does with its devices.
 *
 *   probe hold PATH... [--glob PATTERN]... [--env NAME]... [--seconds S] [--journal FILE] [--id TEXT]
 *              [--excl] [--mode r|w|rw] [--serve PORT]
 *   probe try PATH r|w|rw
 *   probe mknod PATH c|b MAJOR MINOR
 *
 * `hold` opens every device once, journals how that went, keeps what it got until S seconds have passed or
 * SIGTERM comes, and closes. With --excl on block devices the kernel itself is the judge of double use: a
 * second exclusive opener gets EBUSY, whatever node or container it is opened through.
 * With --serve it answers HTTP on a port for as long as it has all of its devices, with its id and their paths;
 * whoever had connected before SIGTERM is answered, too.
 * Exit status of `hold`: 0 all opened, 3 at least one was busy, 4 another error, 2 wrong usage.
 *
 * A journal line is `<monotonic ns> <realtime ns> <open|busy|error|close> <id> <path> <errno>`. The time of
 * an open is taken after it and that of a close before it, so no line claims more than was really held.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { USAGE = 2, BUSY = 3, FAILED = 4, MOST = 1024 };

struct hold {
	const char *paths[MOST];
	int descriptors[MOST];
	int count;
	const char *journal;
	const char *id;
	double seconds; /* negative: until SIGTERM */
	int flags;
	int port; /* 0: serve nobody */
};

static int usage(void)
{
	fputs("usage: probe hold PATH... [--glob PATTERN] [--env NAME] [--seconds S] [--journal FILE] [--id TEXT]"
	      " [--excl] [--mode r|w|rw] [--serve PORT]\n"
	      "       probe try PATH r|w|rw\n"
	      "       probe mknod PATH c|b MAJOR MINOR\n",
	      stderr);
	return USAGE;
}

static int access_mode(const char *text)
{
	if (!strcmp(text, "r"))
		return O_RDONLY;
	if (!strcmp(text, "w"))
		return O_WRONLY;
	if (!strcmp(text, "rw"))
		return O_RDWR;
	exit(usage());
}

static void add_path(struct hold *hold, const char *path)
{
	if (hold->count == MOST)
		exit(usage());
	hold->paths[hold->count++] = path;
}

static void add_glob(struct hold *hold, const char *pattern)
{
	glob_t found;

	if (glob(pattern, 0, NULL, &found))
		return;
	for (size_t i = 0; i < found.gl_pathc; i++)
		add_path(hold, found.gl_pathv[i]); /* kept until the process ends */
}

/* A variable holds one path, or several with a comma or a colon between them. */
static void add_variable(struct hold *hold, const char *name)
{
	const char *value = getenv(name);

	if (!value)
		return;
	for (char *path = strtok(strdup(value), ",:"); path; path = strtok(NULL, ",:"))
		add_path(hold, path);
}

static void parse(struct hold *hold, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		const char *option = argv[i];
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (strncmp(option, "--", 2)) {
			add_path(hold, option);
			continue;
		}
		if (!strcmp(option, "--excl")) {
			hold->flags |= O_EXCL;
			continue;
		}
		if (!value)
			exit(usage());
		i++;
		if (!strcmp(option, "--glob"))
			add_glob(hold, value);
		else if (!strcmp(option, "--env"))
			add_variable(hold, value);
		else if (!strcmp(option, "--seconds"))
			hold->seconds = atof(value);
		else if (!strcmp(option, "--journal"))
			hold->journal = value;
		else if (!strcmp(option, "--id"))
			hold->id = value;
		else if (!strcmp(option, "--serve"))
			hold->port = atoi(value);
		else if (!strcmp(option, "--mode"))
			hold->flags = (hold->flags & ~O_ACCMODE) | access_mode(value);
		else
			exit(usage());
	}
}

static long long now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* One write with O_APPEND: lines of many containers in one file never mix. */
static void note(const struct hold *hold, const char *event, const char *path, int error)
{
	char line[4096];
	int length = snprintf(line, sizeof line, "%lld %lld %s %s %s %s\n", now(CLOCK_MONOTONIC),
			      now(CLOCK_REALTIME), event, hold->id, path, error ? strerrorname_np(error) : "0");
	int file = hold->journal ? open(hold->journal, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : STDOUT_FILENO;

	if (file < 0 || write(file, line, length) != length) {
		perror("probe: cannot write the journal");
		exit(FAILED);
	}
	if (hold->journal)
		close(file);
}

static int open_all(struct hold *hold)
{
	int status = 0;

	for (int i = 0; i < hold->count; i++) {
		const char *path = hold->paths[i];
		int error = 0;

		hold->descriptors[i] = open(path, hold->flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (hold->descriptors[i] >= 0) {
			note(hold, "open", path, 0);
			continue;
		}
		error = errno;
		note(hold, error == EBUSY ? "busy" : "error", path, error);
		fprintf(stderr, "probe: %s: %s (%s)\n", path, strerrorname_np(error), strerror(error));
		if (error != EBUSY)
			status = FAILED;
		else if (!status)
			status = BUSY;
	}
	return status;
}

static void close_all(struct hold *hold)
{
	for (int i = 0; i < hold->count; i++) {
		if (hold->descriptors[i] < 0)
			continue;
		note(hold, "close", hold->paths[i], 0);
		close(hold->descriptors[i]);
	}
}

static void wait_for_end(double seconds, const sigset_t *signals)
{
	struct timespec limit = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};

	while (sigtimedwait(signals, NULL, seconds < 0 ? NULL : &limit) < 0 && errno == EINTR)
		;
}

/* Reads a request to the end of its headers, which is all there is of a GET, and answers it. */
static void answer(const struct hold *hold, int connection)
{
	static const struct timeval limit = {.tv_sec = 2};
	char request[4096], body[4096], reply[8192];
	size_t got = 0;
	int length;

	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	while (got < sizeof request - 1) {
		ssize_t more = read(connection, request + got, sizeof request - 1 - got);

		if (more <= 0)
			break;
		request[got += more] = 0;
		if (strstr(request, "\r\n\r\n")) {
			length = snprintf(body, sizeof body, "%s", hold->id);
			for (int i = 0; i < hold->count && length < (int)sizeof body - 256; i++)
				length += snprintf(body + length, sizeof body - length, " %.200s", hold->paths[i]);
			length = snprintf(reply, sizeof reply,
					  "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", length, body);
			if (send(connection, reply, length, MSG_NOSIGNAL) != length)
				perror("probe: cannot answer");
			break;
		}
	}
	close(connection);
}

static int listen_at(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 128)) {
		perror("probe: cannot listen");
		exit(FAILED);
	}
	return server;
}

static void serve(const struct hold *hold, const sigset_t *signals)
{
	struct pollfd ready[] = {{.fd = listen_at(hold->port), .events = POLLIN},
				 {.fd = signalfd(-1, signals, SFD_CLOEXEC), .events = POLLIN}};

	while (!(ready[1].revents & POLLIN)) {
		int connection;

		if (poll(ready, 2, -1) < 0)
			continue;
		while ((connection = accept4(ready[0].fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
			answer(hold, connection);
	}
	close(ready[0].fd);
}

static int hold_devices(int argc, char **argv)
{
	static struct hold hold = {.flags = O_RDWR, .seconds = -1};
	static char host[256];
	sigset_t signals;
	int status;

	/* Blocked from the start, so that an early SIGTERM still journals what was opened. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	gethostname(host, sizeof host - 1);
	hold.id = host;
	parse(&hold, argc, argv);
	if (!hold.count) {
		fputs("probe: no device to open\n", stderr);
		return FAILED;
	}
	status = open_all(&hold);
	if (!status && hold.port)
		serve(&hold, &signals);
	else if (!status)
		wait_for_end(hold.seconds, &signals);
	close_all(&hold);
	return status;
}

static int report(int failed)
{
	puts(failed ? strerrorname_np(errno) : "ok");
	return failed ? 1 : 0;
}

static int make_node(char **argument)
{
	mode_t type = !strcmp(argument[1], "b") ? S_IFBLK : S_IFCHR;

	return report(mknod(argument[0], type | 0666, makedev(atoi(argument[2]), atoi(argument[3]))));
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	if (!strcmp(command, "hold"))
		return hold_devices(argc - 2, argv + 2);
	if (!strcmp(command, "try") && argc == 4)
		return report(open(argv[2], access_mode(argv[3]) | O_NONBLOCK | O_NOCTTY) < 0);
	if (!strcmp(command, "mknod") && argc == 6)
		return make_node(argv + 2);
	return usage();
}
