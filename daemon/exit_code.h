// How `bim` ends: part of its contract, documented in docs/cli.md.
#pragma once

namespace bim::daemon {

enum class ExitCode : int {
  kOk = 0,
  kFailed = 1,         // the operation failed, and no code below says how
  kUsage = 2,          // wrong flags, arguments or configuration
  kUnreachable = 3,    // no daemon answers at the address
  kNotFound = 4,       // no such image or disk
  kRefused = 5,        // the state does not allow it, or it exists already
  kImageFailed = 6,    // the image ended failed, or is not what it should be
  kTimedOut = 7,       // --timeout passed
  kInterrupted = 130,  // Ctrl-C
};

// The table of --help.
inline constexpr char kExitCodeHelp[] =
    "Exit codes:\n"
    "  0    done\n"
    "  1    failed\n"
    "  2    wrong flags, arguments or configuration\n"
    "  3    cannot reach the daemon\n"
    "  4    no such image or disk\n"
    "  5    refused: the state does not allow it, or it exists already\n"
    "  6    the image ended failed, or is not what its digest says\n"
    "  7    timed out\n"
    "  130  interrupted by Ctrl-C\n";

// `bim upgrade check` ends with one of these instead.
enum class UpgradeExitCode : int {
  kOk = 0,
  kWarnings = 1,
  kStop = 2,
};
inline constexpr char kUpgradeCheckExitCodeHelp[] =
    "Exit codes of this command:\n"
    "  0    this program can take over all disks\n"
    "  1    it can, but there are warnings\n"
    "  2    stop: it cannot, or the check could not be made (also for wrong\n"
    "       flags or arguments)\n";

}  // namespace bim::daemon
