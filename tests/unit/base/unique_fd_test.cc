#include "pkg/base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

namespace bim::base {
namespace {

bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
UniqueFd Some() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

TEST(UniqueFdTest, ClosesOnce) {
  int raw = -1;
  {
    UniqueFd fd = Some();
    raw = fd.get();
    EXPECT_TRUE(fd);
    EXPECT_TRUE(IsOpen(raw));
    UniqueFd other = std::move(fd);
    EXPECT_FALSE(fd);  // NOLINT: moved from on purpose
    EXPECT_EQ(other.get(), raw);
  }
  EXPECT_FALSE(IsOpen(raw));
}

TEST(UniqueFdTest, AssignmentClosesTheOld) {
  UniqueFd a = Some(), b = Some();
  const int old = a.get(), fresh = b.get();
  a = std::move(b);
  EXPECT_FALSE(IsOpen(old));
  EXPECT_EQ(a.get(), fresh);
  UniqueFd& self = a;
  a = std::move(self);
  EXPECT_TRUE(IsOpen(fresh));
  a.Reset();
  a.Reset();
  EXPECT_FALSE(IsOpen(fresh));
}

TEST(UniqueFdTest, Release) {
  UniqueFd fd = Some();
  const int raw = fd.Release();
  EXPECT_FALSE(fd);
  EXPECT_TRUE(IsOpen(raw));
  ::close(raw);
}

}  // namespace
}  // namespace bim::base
