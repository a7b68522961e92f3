#include "pkg/http/url.h"

#include <gtest/gtest.h>

#include <string>

#include "pkg/http/client.h"

namespace bim::http {
namespace {

TEST(CheckUrl, Takes) {
  for (const char* url :
       {"http://host", "http://host/", "https://host/a/b.qcow2?x=1&y=2",
        "HTTP://HOST/", "http://127.0.0.1:8080/x", "http://[::1]:80/x",
        "http://[::1]/", "https://host:443", "http://host/a@b", "http://host?q",
        "http://host/x?u=a:b@c", "http://host/p#f", "http://h-1.example./x"}) {
    EXPECT_TRUE(CheckUrl(url).ok()) << url << CheckUrl(url).ToString();
  }
}

TEST(CheckUrl, Refuses) {
  for (const char* url : {"",
                          "host",
                          "host/path",
                          "ftp://host/x",
                          "file:///etc/passwd",
                          "http:",
                          "http:/host/",
                          "http://",
                          "http:///path",
                          "http://:80/",
                          "http://?q",
                          "http://user@host/",
                          "http://user:secret@host/",
                          "http://@host/",
                          "http://user:pw@ho/st",
                          "http://host:port/",
                          "http://host:99999/",
                          "http://host:8x/",
                          "http://host/a b",
                          "http://host/a\r\nX: y",
                          "http://ho st/",
                          "http://[::1/",
                          "httpx://host/",
                          " http://host/",
                          "http://host/\x7f",
                          "javascript:alert(1)"}) {
    const base::Status status = CheckUrl(url);
    EXPECT_EQ(status.code(), base::Code::kInvalidArgument) << url;
    EXPECT_EQ(status.message().find("secret"), std::string::npos);
  }
  EXPECT_FALSE(CheckUrl("http://h/" + std::string(20000, 'a')).ok());
  EXPECT_FALSE(CheckUrl(std::string_view("http://h/\0x", 11)).ok());
}

TEST(RedactUrl, DropsWhatMayBeSecret) {
  const struct {
    const char* url;
    const char* shown;
  } cases[] = {
      {"", ""},
      {"http://host/a?token=SECRET", "http://host/a"},
      {"http://host/a#SECRET", "http://host/a"},
      {"http://host?SECRET", "http://host"},
      {"http://host/a?x#SECRET?y", "http://host/a"},
      {"http://u:SECRET@host/a", "http://host/a"},
      {"http://u:SEC@RET@host/a", "http://host/a"},
      {"http://u:SEC@R/ET@host/a", "http://host/a"},
      {"http://SECRET@host:8/a", "http://host:8/a"},
      {"http://u:SEC/RET@host/a", "http://(unreadable host)"},
      {"http://u:SEC?RET@host/a", "http://(unreadable host)"},
      {"u:SECRET@host/a?b", "host/a"},
      {"user:SECRET", "(unreadable host)"},
      {"http://host:80/a@b", "http://host:80/a@b"},
      {"http://[::1]:80/a?SECRET", "http://[::1]:80/a"},
      {"http://[::1/a", "http://(unreadable host)"},
      {"host/path", "host/path"},
      {"/relative?SECRET", "/relative"},
      {"http://host/a\nb", "http://host/a?b"},
  };
  for (const auto& [url, shown] : cases) EXPECT_EQ(RedactUrl(url), shown);
}

TEST(ResolveRedirect, JoinsAndRefuses) {
  const std::string base = "http://host:81/dir/file?q=1";
  const struct {
    const char* location;
    const char* next;
  } cases[] = {
      {"other", "http://host:81/dir/other"},
      {"/root?x=y", "http://host:81/root?x=y"},
      {"../up", "http://host:81/up"},
      {"//else/where", "http://else/where"},
      {"https://else:8443/x", "https://else:8443/x"},
      {"?only=query", "http://host:81/dir/file?only=query"},
      {"/a b", "http://host:81/a%20b"},
  };
  for (const auto& [location, next] : cases) {
    const base::Result<std::string> result = ResolveRedirect(base, location);
    ASSERT_TRUE(result.ok()) << location << result.status().ToString();
    EXPECT_EQ(*result, next);
  }
  for (const char* location :
       {"ftp://host/x", "file:///etc/passwd", "gopher://host/",
        "http://user:SECRET@host/", "http://:80/", "http://host:99999/",
        "http://ho[st/?SECRET"}) {
    const base::Result<std::string> result = ResolveRedirect(base, location);
    EXPECT_EQ(result.status().code(), base::Code::kFailedPrecondition)
        << location;
    EXPECT_EQ(result.status().message().find("SECRET"), std::string::npos);
  }
  EXPECT_NE(
      ResolveRedirect(base, "ftp://host/x").status().message().find("'ftp'"),
      std::string::npos);
}

TEST(SameOrigin, ComparesSchemeHostPort) {
  EXPECT_TRUE(SameOrigin("http://host/a", "http://host/b?c"));
  EXPECT_TRUE(SameOrigin("http://host/", "http://host:80/"));
  EXPECT_TRUE(SameOrigin("https://Host/", "HTTPS://hOST:443/"));
  EXPECT_FALSE(SameOrigin("http://host/", "https://host/"));
  EXPECT_FALSE(SameOrigin("http://host/", "http://host:81/"));
  EXPECT_FALSE(SameOrigin("http://host/", "http://host.evil/"));
  EXPECT_FALSE(SameOrigin("http://host/", "http://ghost/"));
  EXPECT_FALSE(SameOrigin("junk", "junk"));
}

}  // namespace
}  // namespace bim::http
