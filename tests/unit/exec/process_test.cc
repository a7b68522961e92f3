#include "pkg/exec/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace bim::exec {
namespace {

using base::Code;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

TEST(ProcessTest, EndsWithItsProgram) {
  EXPECT_TRUE(RunProcess({.arguments = {"true"}}, {}).ok());
  const auto failed = RunProcess(
      {.arguments = {"sh", "-c", "echo one >&2; echo two >&2; exit 3"}}, {});
  EXPECT_EQ(failed.code(), Code::kFailedPrecondition);
  EXPECT_THAT(failed.message(), HasSubstr("exit code 3"));
  EXPECT_THAT(failed.message(), HasSubstr("one two"));
  EXPECT_EQ(RunProcess({.arguments = {"no-such-program"}}, {}).code(),
            Code::kNotFound);
}

TEST(ProcessTest, GetsTheDescriptorsAndNoOthers) {
  const int a = ::memfd_create("a", MFD_CLOEXEC);
  const int b = ::memfd_create("b", MFD_CLOEXEC);
  const int leaked = ::memfd_create("c", 0);  // not close-on-exec
  ASSERT_EQ(::write(a, "hello", 5), 5);
  const auto ran = RunProcess(
      {.arguments = {"sh", "-c",
                     "cat /proc/self/fd/3 >/proc/self/fd/4; test ! -e "
                     "/proc/self/fd/" +
                         std::to_string(leaked)},
       .descriptors = {a, b}},
      {});
  EXPECT_TRUE(ran.ok()) << ran.ToString();
  char text[8] = {};
  EXPECT_EQ(::pread(b, text, sizeof(text), 0), 5);
  EXPECT_STREQ(text, "hello");
  for (const int fd : {a, b, leaked}) ::close(fd);
}

TEST(ProcessTest, IsKilledWhenStopped) {
  std::stop_source stop;
  const auto begin = steady_clock::now();
  std::jthread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stop.request_stop();
  });
  EXPECT_EQ(RunProcess({.arguments = {"sleep", "60"}}, stop.get_token()).code(),
            Code::kCancelled);
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(ProcessTest, IsHeldToItsLimits) {
  const int file = ::memfd_create("a", MFD_CLOEXEC);
  EXPECT_FALSE(RunProcess({.arguments = {"sh", "-c",
                                         "head -c 100000 /dev/zero "
                                         ">/proc/self/fd/3"},
                           .descriptors = {file},
                           .max_file_size = 1000},
                          {})
                   .ok());
  EXPECT_LE(::lseek(file, 0, SEEK_END), 1000);
  ::close(file);
}

TEST(ProcessTest, OfWhatItSaysTheEndIsKept) {
  const auto failed = RunProcess(
      {.arguments = {"sh", "-c",
                     "head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; "
                     "exit 1"}},
      {});
  EXPECT_THAT(failed.message(), HasSubstr("end"));
  EXPECT_LT(failed.message().size(), 1500u);
}

}  // namespace
}  // namespace bim::exec
