// @name@: runs a compiled network and prints how long it took. Written by nervure; change it as you like.
#include <@header@>

@blocks@
static const @name@_memory memory = {@fields@};

void setup() {
  Serial.begin(115200);
  Serial.println(@name@_status_text(@name@_init(&memory)));
}

void loop() {
@inputs@
  unsigned long started = micros();
  int status = @name@_@entry@(&memory, NULL, NULL);
  unsigned long took = micros() - started;
@outputs@
  Serial.print(@name@_status_text(status));
  Serial.print(", ");
  Serial.print(took);
  Serial.println(" us");
  delay(1000);
}
