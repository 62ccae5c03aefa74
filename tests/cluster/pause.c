/* Holds a pod's namespaces: sleeps until it is told to end. */
#include <signal.h>
#include <stddef.h>

int main(void)
{
	sigset_t signals;
	int got;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	/* A blocked signal reaches process 1 too; an unblocked one without a handler does not. */
	sigprocmask(SIG_BLOCK, &signals, NULL);
	sigwait(&signals, &got);
	return 0;
}
