"""Entry point `report`: what the runs on record say of the article, table by table and claim by claim."""
